//! The macro behind each list of drivers.

/// Declares the drivers of one kind: their modules, and the externally tagged enum of their configurations. One that needs a
/// feature says so by a `#[cfg]` before its name, and is no kind where it is not built.
///
/// Each module holds `pub struct Config` with `Deserialize`, `Serialize`, `JsonSchema`, `Clone`, `Debug`, `PartialEq`, `Eq`
/// and [`Build`](crate::Build).
macro_rules! drivers {
    ($(#[$meta:meta])* $name:ident for $contract:ty { $($(#[$only:meta])* $module:ident => $variant:ident),+ $(,)? }) => {
        $($(#[$only])* pub mod $module;)+

        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$only])* #[doc = concat!("`", stringify!($module), "`")] $variant($module::Config)),+
        }

        impl $name {
            /// The kinds in this list, as the configuration names them.
            pub const KINDS: &'static [&'static str] = &[$($(#[$only])* stringify!($module)),+];

            /// Returns the kind as the configuration names it.
            pub fn kind(&self) -> &'static str {
                match self { $($(#[$only])* Self::$variant(_) => stringify!($module)),+ }
            }
        }

        impl crate::Build for $name {
            type Driver = $contract;

            fn build(&self, context: &crate::Context) -> Result<std::sync::Arc<$contract>, keywheel_driver::Refusal> {
                match self { $($(#[$only])* Self::$variant(config) => config.build(context)),+ }
            }

            fn borrows(&self) -> Option<&str> {
                match self { $($(#[$only])* Self::$variant(config) => config.borrows()),+ }
            }

            fn lend(&mut self, lent: &crate::Lent<'_>) -> Result<(), keywheel_driver::Refusal> {
                match self { $($(#[$only])* Self::$variant(config) => config.lend(lent)),+ }
            }
        }
    };
}

pub(crate) use drivers;
