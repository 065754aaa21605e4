//! Options for the Docker daemon from `subnet.env`, as flannel's `mk-docker-opts.sh` prints them.
//!
//! The shell format is the script's output byte for byte, with its quirks: the combined value begins with a space, and
//! the options come in the order of their names (`BIP`, `IPMASQ`, `MTU`). The script also looks at the routing table;
//! that is not done here.

use std::fmt::Write as _;

use crate::env_file::EnvFile;

/// The format in which the options are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The script's own format: `NAME="value"`, to be sourced by a shell.
    #[default]
    Shell,
    /// One `DOCKER_OPTS="…"` without the leading space, or single variables, for systemd's `EnvironmentFile=`.
    Systemd,
    /// JSON for `/etc/docker/daemon.json`.
    Json,
}

/// The options that are asked for. [`Default`] is the script without options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerOpts {
    /// The format.
    pub format: Format,
    /// True to print one variable for each option (the script's `-i`).
    pub individual: bool,
    /// True to print one variable for all options (the script's `-c`).
    pub combined: bool,
    /// The combined variable's name (the script's `-k`).
    pub key: String,
    /// True to print `--ip-masq` (the script's `-m` turns it off).
    pub ip_masq: bool,
}

impl Default for DockerOpts {
    fn default() -> Self {
        Self {
            format: Format::Shell,
            individual: true,
            combined: true,
            key: Self::DEFAULT_KEY.to_owned(),
            ip_masq: true,
        }
    }
}

/// A name that a shell does not accept for a variable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a shell variable (letters, digits and '_', not beginning with a digit)")]
pub struct InvalidKey(pub String);

impl DockerOpts {
    /// The script's default for `-k`.
    pub const DEFAULT_KEY: &'static str = "DOCKER_OPTS";

    /// Writes the options that follow from `env`. As in the script, asking for neither form gives both.
    pub fn render(&self, env: &EnvFile) -> Result<String, InvalidKey> {
        let mut chars = self.key.chars();
        let begins_well = chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
        if !(begins_well && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')) {
            return Err(InvalidKey(flatnet_model::text::excerpt(&self.key)));
        }
        Ok(match self.format {
            Format::Shell => self.variables(env, " "),
            Format::Systemd => self.variables(env, ""),
            Format::Json => self.json(env),
        })
    }

    /// Writes the variables. `before` stands before the first option of the combined value.
    fn variables(&self, env: &EnvFile, before: &str) -> String {
        let both = !self.individual && !self.combined;
        let options = self.options(env);
        let mut text = String::new();
        // Writing to a string cannot fail.
        if self.individual || both {
            for (name, value) in &options {
                let _ = writeln!(text, "DOCKER_OPT_{name}=\"{value}\"");
            }
        }
        if self.combined || both {
            let values: Vec<&str> = options.iter().map(|(_, value)| value.as_str()).collect();
            let _ = writeln!(text, "{}=\"{before}{}\"", self.key, values.join(" "));
        }
        text
    }

    /// Returns the options in the order in which a shell's `set` lists the script's variables.
    fn options(&self, env: &EnvFile) -> Vec<(&'static str, String)> {
        let mut options = Vec::new();
        if let Some(half) = env.v4 {
            options.push(("BIP", format!("--bip={}", half.gateway)));
        }
        if self.ip_masq {
            // Only one of the two masquerades.
            options.push(("IPMASQ", format!("--ip-masq={}", !env.ip_masq)));
        }
        options.push(("MTU", format!("--mtu={}", env.mtu)));
        options
    }

    fn json(&self, env: &EnvFile) -> String {
        let mut fields = Vec::new();
        if let Some(half) = env.v4 {
            fields.push(format!("\"bip\": \"{}\"", half.gateway));
        }
        if let Some(half) = env.v6 {
            fields.push("\"ipv6\": true".to_owned());
            fields.push(format!("\"fixed-cidr-v6\": \"{}\"", half.gateway.trunc()));
        }
        if self.ip_masq {
            fields.push(format!("\"ip-masq\": {}", !env.ip_masq));
        }
        fields.push(format!("\"mtu\": {}", env.mtu));
        format!("{{\n  {}\n}}\n", fields.join(",\n  "))
    }
}

#[cfg(test)]
mod tests;
