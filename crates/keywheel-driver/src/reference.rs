//! References to secrets that the configuration needs: never the value itself.

use keywheel_core::call::{Refusal, RefusalKind};
use keywheel_core::secret::SecretValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a value that keywheel itself needs (an admin key) is read, each time it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretReference {
    /// An environment variable of keywheel's own process.
    Env(String),
    /// A file; one trailing newline is left out.
    File(std::path::PathBuf),
    /// A program and its arguments, run without a shell; one trailing newline of its output is left out.
    Command(Vec<String>),
}

impl SecretReference {
    /// Reads the value now.
    ///
    /// # Errors
    /// A [`Refusal`] that names the reference, not what was found there.
    pub fn resolve(&self) -> Result<SecretValue, Refusal> {
        let bytes = match self {
            Self::Env(name) => std::env::var_os(name)
                .map(std::os::unix::ffi::OsStringExt::into_vec)
                .ok_or_else(|| refused(format!("environment variable `{name}` is not set")))?,
            Self::File(path) => std::fs::read(path)
                .map_err(|e| refused(format!("file `{}`: {}", path.display(), e.kind())))?,
            Self::Command(argv) => run(argv)?,
        };
        let value = without_newline(bytes);
        if value.is_empty() {
            Err(refused(format!("{self} is empty")))
        } else {
            Ok(SecretValue::new(value))
        }
    }
}

impl std::fmt::Display for SecretReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Env(name) => write!(f, "environment variable `{name}`"),
            Self::File(path) => write!(f, "file `{}`", path.display()),
            Self::Command(argv) => {
                write!(f, "command `{}`", argv.first().map_or("", String::as_str))
            }
        }
    }
}

fn run(argv: &[String]) -> Result<Vec<u8>, Refusal> {
    let (program, arguments) =
        argv.split_first().ok_or_else(|| refused("a command needs a program".into()))?;
    let output = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .output()
        .map_err(|e| refused(format!("command `{program}`: {}", e.kind())))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(refused(format!("command `{program}` ended with {}", output.status)))
    }
}

fn without_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

fn refused(message: String) -> Refusal {
    Refusal::operator(RefusalKind::Local, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_loses_one_newline_only() {
        let file = std::env::temp_dir().join(format!("keywheel-reference-{}", std::process::id()));
        std::fs::write(&file, b"value\n\n").unwrap();
        let value = SecretReference::File(file.clone()).resolve().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(value.expose(), b"value\n");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = SecretReference::Env("KEYWHEEL_NOT_SET".into()).resolve().err().unwrap();
        assert_eq!(missing.message, "environment variable `KEYWHEEL_NOT_SET` is not set");
    }
}
