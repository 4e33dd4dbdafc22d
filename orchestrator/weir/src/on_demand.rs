//! Flags of a subcommand that are made when it is asked for.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, builder::Resettable};

/// The flags `T`. Those of roles that are not asked for cost nothing: making all would touch a megabyte of code in every
/// process, and keep it.
///
/// As clap's own `defer`, but that what the command line says of a subcommand stays in front of what `T` says of itself.
pub(crate) struct OnDemand<T>(pub(crate) T);

impl<T: Args> Args for OnDemand<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(|command| {
            let (about, long_about) = (command.get_about().cloned(), command.get_long_about().cloned());
            T::augment_args(command).about(Resettable::from(about)).long_about(Resettable::from(long_about))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

impl<T: Args> FromArgMatches for OnDemand<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}
