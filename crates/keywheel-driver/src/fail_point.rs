//! Named places at which a test can kill the process, compiled only with the feature `fail-points`.
//!
//! `KEYWHEEL_FAIL_POINT=<place>[:<n>]` ends the process with SIGKILL when the place is passed for the n-th time (1 unless
//! told), after writing the place to the file named by `KEYWHEEL_FAIL_POINT_LOG`, which proves that it fired.

#[cfg(all(feature = "fail-points", not(debug_assertions)))]
compile_error!("fail points are for test builds only");

/// Passes a named place; does nothing in a build without fail points.
#[cfg(not(feature = "fail-points"))]
pub fn pass(_place: &str, _step: &str) {}

/// Passes a named place, and dies there if a test asked for it.
#[cfg(feature = "fail-points")]
pub fn pass(place: &str, step: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);

    let here = format!("{place}:{step}");
    if let Some(list) = std::env::var_os("KEYWHEEL_FAIL_POINT_LIST") {
        note(&list, &here);
    }
    let Ok(wanted) = std::env::var("KEYWHEEL_FAIL_POINT") else { return };
    let (name, nth) = match wanted.rsplit_once('#') {
        Some((name, nth)) => (name, nth.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1),
    };
    if name != here || PASSED.fetch_add(1, Ordering::SeqCst) + 1 != nth {
        return;
    }
    if let Some(log) = std::env::var_os("KEYWHEEL_FAIL_POINT_LOG") {
        note(&log, &here);
    }
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::KILL)
        .expect("a process may kill itself");
    loop {
        std::thread::park();
    }
}

#[cfg(feature = "fail-points")]
fn note(path: &std::ffi::OsStr, line: &str) {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Ok(mut file) = file {
        writeln!(file, "{line}").expect("the log of fail points can be written");
    }
}
