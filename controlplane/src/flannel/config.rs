//! A network's `config` value.
use flatnet_model::NetworkConfig;

/// Something in a usable configuration that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// Stable, kebab-case.
    pub code: &'static str,
    /// What, in one sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Why a configuration cannot be used; the text names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// Reads flannel's network configuration.
pub fn decode_config(value: &[u8]) -> Result<(NetworkConfig, Vec<ConfigWarning>), InvalidConfig> {
    let _ = value;
    todo!()
}

/// Writes `config`; fields of `previous` that we do not know are kept.
pub fn encode_config(config: &NetworkConfig, previous: Option<&[u8]>) -> Result<Vec<u8>, InvalidConfig> {
    let _ = (config, previous);
    todo!()
}
