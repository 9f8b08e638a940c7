//! Planted bugs: known mistakes that the simulator must catch, switched on by name at run time.
//!
//! They exist only with the cargo feature `planted-bugs`; without it, [`crate::planted!`] is `false` and nothing of a bug is
//! compiled. A shipped binary cannot contain them.

/// Returns whether the named bug is switched on; always `false` without the feature `planted-bugs`.
#[cfg(not(feature = "planted-bugs"))]
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        false
    };
}

/// Returns whether the named bug is switched on.
#[cfg(feature = "planted-bugs")]
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        $crate::planted::is_on($name)
    };
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;
    use std::sync::LazyLock;

    thread_local! {
        static ON: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// The bug that `KEYWHEEL_PLANTED` names, for the whole process: how `cargo xtask hazards` removes a protection.
    static EVERYWHERE: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("KEYWHEEL_PLANTED").ok());

    /// Switches one bug on for this thread, or all of them off.
    pub fn switch(name: Option<&'static str>) {
        ON.with(|on| on.set(name));
    }

    /// Returns whether the named bug is switched on for this thread.
    pub fn is_on(name: &str) -> bool {
        ON.with(|on| on.get().is_some_and(|planted| planted == name))
            || EVERYWHERE.as_deref() == Some(name)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{is_on, switch};
