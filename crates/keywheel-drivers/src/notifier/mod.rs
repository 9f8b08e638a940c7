//! Notifiers. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_driver::Notifier;

use crate::list::drivers;

drivers! {
    /// The configuration of a notifier: `{ command: {…} }`.
    NotifierConfig for dyn Notifier {
        command => Command,
    }
}
