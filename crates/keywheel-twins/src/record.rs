//! The recorder: what a twin was asked and what it answered, whole, for a comparison with the provider's specification.
//!
//! A record holds values. It stays in memory, has no `Debug`, and is kept only where a test asks for it.

use serde_json::Value;

/// One request and its answer.
#[derive(Clone)]
pub struct Exchange {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The parameters of the URL, as they stand there.
    pub query: String,
    /// The body of the request, where it is JSON.
    pub body: Option<Value>,
    /// The status of the answer.
    pub status: u16,
    /// The body of the answer, where it is JSON.
    pub answer: Option<Value>,
}
