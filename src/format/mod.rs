//! Files: GGUF and the importance matrix. The only readers of untrusted bytes.

pub mod types;
