//! Workloads. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

mod clock;

use keywheel_driver::Workload;

use crate::list::drivers;

drivers! {
    /// The configuration of a workload: `{ process: {…} }`.
    WorkloadConfig for dyn Workload {
        compose_service => ComposeService,
        process => Process,
        command => Command,
        systemd => Systemd,
        kubernetes => Kubernetes,
    }
}
