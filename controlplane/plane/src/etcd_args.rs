//! The flags for authenticating an etcd and authenticating to it, shared by the agent's commands and the control
//! plane's.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::failure::{Exit, Failure, chain};
use crate::store::etcd::{Again, EtcdOptions, EtcdStore, File, InvalidOptions};

/// Where in an etcd the networks are, and how to authenticate it and to it.
#[derive(Args, Clone, Debug, Default)]
pub struct EtcdArgs {
    /// Where the network `default` lives in etcd
    #[arg(long, value_name = "PREFIX", env = "FLATNET_ETCD_PREFIX", default_value = flatnet_model::keys::FLANNEL_PREFIX)]
    pub etcd_prefix: String,
    /// CA certificate (PEM) that signed etcd's certificate
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_CAFILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Our certificate (PEM) for etcd
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_CERTFILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key (PEM) of that certificate
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_KEYFILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// etcd user name
    #[arg(long, value_name = "NAME", env = "FLATNET_ETCD_USERNAME", requires = "etcd_password_file")]
    pub etcd_username: Option<String>,
    /// File with the password of that user
    #[arg(long, value_name = "FILE", env = "FLATNET_ETCD_PASSWORD_FILE", requires = "etcd_username")]
    pub etcd_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// Opens the etcd at `endpoints` (URLs), which need not be there.
    pub fn open(&self, endpoints: Vec<String>) -> Result<EtcdStore, Failure> {
        let mut options = self.options(endpoints.clone())?;
        let args = self.clone();
        options.again = Some(Again::new(move || args.options(endpoints.clone()).map_err(|failure| chain(&failure))));
        EtcdStore::connect(options).map_err(|error| self.invalid(&error))
    }

    /// Reads the options from the flags, with the files as they are now.
    fn options(&self, endpoints: Vec<String>) -> Result<EtcdOptions, Failure> {
        let file = |flag, path: &Option<PathBuf>| path.as_ref().map(|path| read_file(flag, path)).transpose();
        // The command line does not check the values of a settings file against each other.
        self.check_pairs()?;
        let certificate = file("etcd-certfile", &self.etcd_certfile)?;
        let key = file("etcd-keyfile", &self.etcd_keyfile)?;
        let password = file("etcd-password-file", &self.etcd_password_file)?;
        let password = password.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned());
        Ok(EtcdOptions {
            endpoints,
            ca: file("etcd-cafile", &self.etcd_cafile)?,
            identity: certificate.zip(key),
            user: self.etcd_username.clone().zip(password),
            again: None,
        })
    }

    /// Names the file that is wrong and the reason.
    fn invalid(&self, error: &InvalidOptions) -> Failure {
        let (flag, path) = match error.file {
            Some(File::Ca) => ("--etcd-cafile", &self.etcd_cafile),
            Some(File::Certificate) => ("--etcd-certfile", &self.etcd_certfile),
            Some(File::Key) => ("--etcd-keyfile", &self.etcd_keyfile),
            None => ("", &None),
        };
        let path = path.as_ref().map(|path| path.display().to_string());
        let message = match &path {
            Some(path) => format!("{flag} {path}: {error}"),
            None => error.to_string(),
        };
        let hint = match error.hint.as_str() {
            "" => "check the endpoints and the --etcd-… flags: certificates and keys are PEM files".to_owned(),
            hint => hint.replace("FILE", path.as_deref().unwrap_or("FILE")),
        };
        Failure::new(Exit::InvalidConfig, message).hint(hint)
    }
}

impl EtcdArgs {
    /// Refuses flags that are of no use alone.
    fn check_pairs(&self) -> Result<(), Failure> {
        let pairs = [
            (self.etcd_certfile.is_some(), self.etcd_keyfile.is_some(), "etcd-certfile", "etcd-keyfile"),
            (self.etcd_username.is_some(), self.etcd_password_file.is_some(), "etcd-username", "etcd-password-file"),
        ];
        match pairs.into_iter().find(|(one, other, ..)| one != other) {
            None => Ok(()),
            Some((_, _, one, other)) => {
                Err(Failure::new(Exit::InvalidConfig, format!("{one} and {other} go together"))
                    .hint("give both, or neither"))
            }
        }
    }
}

/// Reads a file named by a flag.
pub fn read_file(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::new(Exit::InvalidConfig, format!("--{flag}: cannot read {}", path.display())).caused_by(error)
    })
}
