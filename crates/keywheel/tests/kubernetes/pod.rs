//! Pods that are real processes.

use std::os::unix::ffi::OsStringExt;

use keywheel_core::secret::SecretValue;
use keywheel_example::backend;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Where it listens.
pub(crate) const PORT: u16 = 8080;

/// What a pod runs: this very program, told by its environment to be one, and how to end with settings that it refuses.
#[test]
fn pod() {
    let Ok(refuses_with) = std::env::var("KEYWHEEL_TEST_POD") else { return };
    let serve = async {
        let mut asked_to_end = signal(SignalKind::terminate()).unwrap();
        let variable = |name: &str| Some(SecretValue::new(std::env::var_os(name)?.into_vec()));
        let settings = match backend::Settings::read(variable, None) {
            Ok(settings) => settings,
            Err(error) => {
                println!("{error}");
                std::process::exit(refuses_with.parse().unwrap())
            }
        };
        let address = format!("{}:{PORT}", std::env::var("POD_IP").unwrap());
        let listener = TcpListener::bind(address).await.unwrap();
        let asked = async move {
            let _: Option<()> = asked_to_end.recv().await;
        };
        backend::serve(settings, listener, asked).await.unwrap();
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(serve);
    std::process::exit(0)
}
