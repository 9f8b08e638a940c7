//! The commands, one file each: `…Args` says what may be asked, `run` answers.

pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod explain;
pub(crate) mod man;
pub(crate) mod schema;
