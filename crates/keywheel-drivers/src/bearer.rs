//! Access tokens of clouds: short-lived, had from wherever the configuration says, and kept until shortly before their end.

use std::sync::Arc;

use keywheel_core::secret::SecretValue;
use keywheel_driver::{CallError, Refusal, SecretReference};
use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::{Context, reference};

/// How keywheel shows Google who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Google {
    /// An access token, read each time it is needed: `{ command: [gcloud, auth, print-access-token] }`.
    Token(SecretReference),
}

impl Google {
    /// Says where tokens come from.
    pub(crate) fn tokens(
        &self,
        _target: &'static str,
        context: &Context,
    ) -> Result<Tokens, Refusal> {
        let Self::Token(reference) = self;
        Ok(Tokens { source: Arc::new(reference::from_root(reference, context)) })
    }
}

/// Where tokens come from.
pub(crate) struct Tokens {
    source: Arc<SecretReference>,
}

impl Tokens {
    /// Returns the headers of a request.
    pub(crate) async fn headers(&self, api: &Api) -> Result<HeaderMap, CallError> {
        let token: SecretValue = reference::read(&self.source).await?;
        Ok(api.bearer(&token, "access token")?)
    }
}
