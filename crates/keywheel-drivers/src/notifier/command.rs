//! `command`: a program that is given each message on its input, and takes it by ending with 0.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::secret::SecretValue;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::{CallError, Notifier, Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Build, Context, program};

/// A program that is given each message as JSON on its input, without a shell and without keywheel's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program and its arguments. A relative path begins at the folder of the configuration file.
    pub argv: Vec<String>,
    /// How long it may take for one message before it is killed; the message is then kept for later.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_within() -> Duration {
    Span::seconds(10).into()
}

impl Build for Config {
    type Driver = dyn Notifier;

    fn build(&self, context: &Context) -> Result<Arc<dyn Notifier>, Refusal> {
        program::check("argv", &self.argv)?;
        Ok(Arc::new(Command { config: self.clone(), folder: context.root.clone() }))
    }
}

struct Command {
    config: Config,
    folder: PathBuf,
}

#[async_trait]
impl Notifier for Command {
    async fn deliver(&self, message: &str) -> Result<(), CallError> {
        let Config { argv, within } = &self.config;
        let message = SecretValue::new(message.as_bytes().to_vec());
        let ended = program::ask(argv, &self.folder, &message, within.span()).await?.ended;
        match ended.well() {
            true => Ok(()),
            false => {
                let why = format!("{} {}", program::name(argv), ended.in_words());
                Err(Refusal::retry(RefusalKind::Unavailable, None, why).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn deliver(script: &str, within: Span) -> Result<(), CallError> {
        let argv = ["sh", "-c", script].map(String::from).to_vec();
        let config = Config { argv, within: within.into() };
        config.build(&Context::at("/")).unwrap().deliver("{\"id\":\"one\"}").await
    }

    #[tokio::test]
    async fn a_message_is_taken_where_the_program_ends_well() {
        let minute = Span::minutes(1);
        assert_eq!(deliver("grep -q '\"id\":\"one\"'", minute).await, Ok(()));
        let refused = deliver("cat; exit 3", minute).await.unwrap_err().to_string();
        assert!(refused.contains("command `sh` ended with 3"), "{refused}");
        let late = deliver("sleep 600", Span::millis(50)).await.unwrap_err().to_string();
        assert!(late.contains("did not end in time"), "{late}");
    }
}
