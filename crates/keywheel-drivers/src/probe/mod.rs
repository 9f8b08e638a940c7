//! Probes. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

/// The configuration of a probe: `{ http: {…} }`.
pub enum ProbeConfig {}
