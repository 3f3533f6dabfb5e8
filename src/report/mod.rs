//! The evidence that a person looks at: `frontier.json`, pictures, a page, a table. Data in, text out.

pub mod data;
