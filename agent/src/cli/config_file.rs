//! `--config FILE`: TOML whose keys are the flags' names. Default < file < environment < flag: the file's values become
//! the flags' defaults, so clap keeps the order.

use std::path::Path;

use clap::Command;

use crate::report::{Exit, Failure};

/// `command` with the values of `file` as defaults of its arguments.
pub fn with_defaults(command: Command, file: &Path) -> Result<Command, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(Exit::InvalidConfig, format!("cannot read the configuration file {}", file.display()))
            .caused_by(error)
    })?;
    apply(command, &text).map_err(|problem| {
        Failure::new(Exit::InvalidConfig, format!("{}: {problem}", file.display()))
            .hint("the keys are the flags of the command without their dashes; see its --help")
    })
}

/// `command` with the values of `text` as defaults of its arguments; the error names what is wrong in it.
pub fn apply(mut command: Command, text: &str) -> Result<Command, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    for (key, value) in table {
        let argument = command
            .get_arguments()
            .find(|argument| {
                let named = argument.get_long() == Some(key.as_str());
                let positional = argument.is_positional() && argument.get_id().as_str() == key;
                (named || positional) && key != "config"
            })
            .ok_or_else(|| format!("unknown key {:?}", flatnet_model::keys::excerpt(&key)))?
            .get_id()
            .clone();
        let values =
            scalars(&value).ok_or_else(|| format!("{key}: expected a string, number, boolean, or a list of them"))?;
        command = command.mut_arg(argument, |argument| argument.required(false).default_values(values));
    }
    Ok(command)
}

fn scalars(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(truth) => Some(vec![truth.to_string()]),
        toml::Value::Array(items) => items
            .iter()
            .map(|item| scalars(item).filter(|_| !item.is_array()))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.concat()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    fn command() -> Command {
        Command::new("join")
            .arg(Arg::new("endpoint").required(true).num_args(1..))
            .arg(Arg::new("node_name").long("node-name").env("FLATNET_TEST_NODE_NAME").default_value("host"))
    }

    #[test]
    fn the_file_is_below_the_flag_and_above_the_default() {
        let command = || apply(command(), "endpoint = [\"a\", \"b\"]\nnode-name = \"file\"").unwrap();
        let matches = command().try_get_matches_from(["join"]).unwrap();
        assert_eq!(matches.get_one::<String>("node_name").unwrap(), "file");
        assert_eq!(matches.get_many::<String>("endpoint").unwrap().count(), 2);
        let matches = command().try_get_matches_from(["join", "--node-name", "flag", "c"]).unwrap();
        assert_eq!(matches.get_one::<String>("node_name").unwrap(), "flag");
        assert_eq!(matches.get_many::<String>("endpoint").unwrap().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn an_unknown_key_and_a_nested_table_are_refused_by_name() {
        assert!(apply(command(), "node-nam = 1").unwrap_err().contains("node-nam"));
        assert!(apply(command(), "[node-name]\na = 1").unwrap_err().contains("node-name"));
        assert!(apply(command(), "node-name = ").unwrap_err().contains("line 1"));
    }
}
