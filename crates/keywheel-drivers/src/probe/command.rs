//! `command`: a program that ends with 0 when all is well.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Build, Context, program};

/// A program that ends with 0 when all is well, run without a shell and without keywheel's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program and its arguments. A relative path begins at the folder of the configuration file.
    pub argv: Vec<String>,
    /// How long it may run before it is killed and counts as red.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_within() -> Duration {
    Span::seconds(10).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        program::check("argv", &self.argv)?;
        Ok(Arc::new(Command { config: self.clone(), folder: context.root.clone() }))
    }
}

struct Command {
    config: Config,
    folder: PathBuf,
}

#[async_trait]
impl Probe for Command {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        let Config { argv, within } = &self.config;
        let ended = program::run(argv, &self.folder, &[], within.span()).await?;
        Ok(match ended.well() {
            true => Health::Green,
            false => Health::Red(format!("{} {}", program::name(argv), ended.in_words())),
        })
    }
}

#[cfg(test)]
mod tests {
    use keywheel_driver::RefusalKind;

    use super::*;

    async fn ask(argv: &[&str], within: Span) -> Result<Health, CallError> {
        let argv = argv.iter().map(|&word| word.into()).collect();
        let config = Config { argv, within: within.into() };
        config.build(&Context::at("/")).unwrap().ask(&crate::probe::NOW).await
    }

    #[tokio::test]
    async fn the_end_of_the_program_is_the_answer() {
        let long = Span::minutes(1);
        assert_eq!(ask(&["true"], long).await, Ok(Health::Green));
        let red = |message: &str| Ok(Health::Red(message.into()));
        assert_eq!(
            ask(&["sh", "-c", "echo noise; exit 3"], long).await,
            red("command `sh` ended with 3")
        );
        let late = ask(&["sleep", "600"], Span::millis(50)).await;
        assert_eq!(late, red("command `sleep` did not end in time"));
    }

    #[tokio::test]
    async fn a_question_that_cannot_be_asked_is_no_answer() {
        let error = ask(&["./no-such-program"], Span::seconds(1)).await.expect_err("nothing ran");
        assert!(matches!(error, CallError::Refused(Refusal { kind: RefusalKind::Local, .. })));
        let empty = Config { argv: Vec::new(), within: default_within() };
        assert!(empty.build(&Context::at("/")).is_err());
    }
}
