//! Conversations as evaluation and calibration text, and the chat templates that render them.
//!
//! | module | content |
//! |---|---|
//! | [`template`] | a model's chat template: Jinja as in Transformers |
//! | [`encoder`] | texts of every kind to tokens |
//! | [`conversation`] | JSONL files of conversations; their tokens, and the assistant's among them |

pub mod conversation;
pub mod encoder;
mod python;
pub mod template;
