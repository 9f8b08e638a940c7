//! Probes. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_driver::Probe;

use crate::list::drivers;

drivers! {
    /// The configuration of a probe: `{ http: {…} }`.
    ProbeConfig for dyn Probe {
        http => Http,
        command => Command,
        log_scan => LogScan,
        prometheus_query => PrometheusQuery,
        sql => Sql,
        tcp => Tcp,
        tls => Tls,
    }
}

/// A moment for the tests of probes that compare nothing.
#[cfg(test)]
pub(crate) const NOW: keywheel_driver::probe::Asked = keywheel_driver::probe::Asked {
    began_at: keywheel_core::time::Timestamp::from_millis(0),
    now: keywheel_core::time::Timestamp::from_millis(1),
};
