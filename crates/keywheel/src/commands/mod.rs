//! The commands, one file each: `…Args` says what may be asked, `run` answers.

pub(crate) mod adopt;
pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod drill;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod incident;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod plan;
pub(crate) mod reconcile;
pub(crate) mod resume;
pub(crate) mod rotate;
pub(crate) mod rotation;
pub(crate) mod schema;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod vault;
pub(crate) mod where_;
