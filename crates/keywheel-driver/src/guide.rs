//! People: whom a driver asks for what no program can do, such as clicking in a console.

use async_trait::async_trait;
use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::secret::SecretValue;

/// Someone who can be told what to do and asked for one line.
#[async_trait]
pub trait Guide: Send + Sync {
    /// Returns why nobody can be asked; none where somebody may answer.
    fn absence(&self) -> Option<Refusal>;

    /// Tells and asks, one question at a time. None where no answer came: the person left, or the input ended. What was told
    /// may have been done all the same.
    async fn ask(&self, question: &Question<'_>) -> Option<SecretValue>;
}

/// What a person is told and asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// What to do first, one line each.
    pub steps: &'a [String],
    /// What is asked then, in a few words.
    pub prompt: &'a str,
    /// Whether the answer is a secret, which is not shown while it is typed.
    pub hidden: bool,
}

/// Nobody, as for a program without a terminal.
pub struct Nobody;

#[async_trait]
impl Guide for Nobody {
    fn absence(&self) -> Option<Refusal> {
        Some(Refusal::operator(
            RefusalKind::NeedsPerson,
            "needs a person, and there is no one to ask",
        ))
    }

    async fn ask(&self, _question: &Question<'_>) -> Option<SecretValue> {
        None
    }
}
