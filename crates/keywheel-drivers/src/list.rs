//! The macro behind each list of drivers.

/// Declares the drivers of one kind: their modules, and the externally tagged enum of their configurations.
///
/// Each module holds `pub struct Config` with `Deserialize`, `Serialize`, `JsonSchema`, `Clone`, `Debug`, `PartialEq`, `Eq`
/// and [`Build`](crate::Build).
macro_rules! drivers {
    ($(#[$meta:meta])* $name:ident for $contract:ty { $($module:ident => $variant:ident),+ $(,)? }) => {
        $(pub mod $module;)+

        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $(#[doc = concat!("`", stringify!($module), "`")] $variant($module::Config)),+
        }

        impl $name {
            /// The kinds in this list, as the configuration names them.
            pub const KINDS: &'static [&'static str] = &[$(stringify!($module)),+];

            /// Returns the kind as the configuration names it.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => stringify!($module)),+ }
            }
        }

        impl crate::Build for $name {
            type Driver = $contract;

            fn build(&self, context: &crate::Context) -> Result<std::sync::Arc<$contract>, keywheel_driver::Refusal> {
                match self { $(Self::$variant(config) => config.build(context)),+ }
            }
        }
    };
}

pub(crate) use drivers;
