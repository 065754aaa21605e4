//! An etcd that speaks TLS and asks for client certificates.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::{Namespace, Ran, run};
use flatnet_tests::oracle;
use flatnet_tests::suite::{Need, Test};
use flatnet_tests::wait::{SOON, wait_until};

pub fn tests() -> Vec<Test> {
    let tests = [
        Test::new("tls::client_certificates_let_agents_and_commands_in", welcome),
        Test::new("tls::a_ca_that_did_not_sign_the_server_is_named", wrong_ca),
        Test::new("tls::an_expired_client_certificate_is_named", expired),
        Test::new("tls::a_stranger_certificate_is_named_and_let_in_once_it_is_trusted", stranger),
        Test::new("tls::files_that_are_no_certificates_are_refused_at_once", no_pem),
        Test::new("tls::a_certificate_that_a_server_signed_itself_is_believed_where_it_is_given", self_signed),
    ];
    tests.into_iter().map(|test| test.on_backend("vxlan").needing(Need::Openssl)).collect()
}

/// Certificates in a directory, made by openssl(1).
struct Certificates(PathBuf);

impl Certificates {
    /// Makes two authorities, a server's certificate for `address`, and clients': `client`, `expired`, and `stranger`
    /// of the other authority.
    fn make(directory: &Path, address: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let made = Self(directory.to_owned());
        for ca in ["ca", "other"] {
            made.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {ca}.key -out {ca}.pem -days 2 -subj /CN={ca}"
            ));
        }
        let extensions =
            format!("subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n");
        std::fs::write(directory.join("extensions"), extensions).unwrap();
        for (name, ca, days) in
            [("server", "ca", 2), ("client", "ca", 2), ("expired", "ca", -1), ("stranger", "other", 2)]
        {
            made.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ));
            made.openssl(&format!(
                "x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days {days} -extfile extensions -out {name}.pem"
            ));
        }
        made
    }

    fn openssl(&self, arguments: &str) {
        let ran = run(Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0));
        assert_eq!(ran.code, 0, "openssl {arguments}: {}", ran.stderr);
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    /// Returns the flags of a client called `client` that trusts `ca`.
    fn flags(&self, ca: &str, client: &str) -> Vec<String> {
        vec![
            format!("--etcd-cafile={}", self.path(&format!("{ca}.pem"))),
            format!("--etcd-certfile={}", self.path(&format!("{client}.pem"))),
            format!("--etcd-keyfile={}", self.path(&format!("{client}.key"))),
        ]
    }
}

/// A lab with a second etcd that asks for certificates; killed when dropped.
struct Secured {
    lab: Lab,
    certificates: Certificates,
    endpoint: String,
    etcd: Option<Child>,
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Secured {
    fn new(hosts: u8) -> Self {
        let lab = Lab::without_network(&Shape::vxlan(hosts));
        let address = lab.topology.endpoint().trim_start_matches("http://").trim_end_matches(":2379").to_owned();
        let certificates = Certificates::make(&lab.directory.join("tls"), &address);
        let mut secured = Self { lab, certificates, endpoint: format!("https://{address}:2479"), etcd: None };
        secured.start("ca.pem");
        let config = Shape::vxlan(1).config().to_string();
        let ran = secured.ctl(&["put", "/coreos.com/network/config", &config]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        secured
    }

    /// Starts etcd, trusting clients of the authorities in `trusted`.
    fn start(&mut self, trusted: &str) {
        self.start_as("server", trusted);
    }

    /// Starts etcd as [`Self::start`] does, with the certificate called `server`.
    fn start_as(&mut self, server: &str, trusted: &str) {
        let (directory, files) = (&self.lab.directory, &self.certificates);
        let peer = "http://127.0.0.1:2480";
        let argv = [
            "etcd".to_owned(),
            "--name=secured".to_owned(),
            format!("--data-dir={}", directory.join("secured").display()),
            format!("--listen-client-urls={}", self.endpoint),
            format!("--advertise-client-urls={}", self.endpoint),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=secured={peer}"),
            format!("--cert-file={}", files.path(&format!("{server}.pem"))),
            format!("--key-file={}", files.path(&format!("{server}.key"))),
            format!("--trusted-ca-file={}", files.path(trusted)),
            "--client-cert-auth".to_owned(),
            "--unsafe-no-fsync".to_owned(),
        ];
        let log = File::options().create(true).append(true).open(directory.join("secured.log")).unwrap();
        let mut command = self.store().command(&argv);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.etcd = Some(command.spawn().unwrap());
        wait_until("the secured etcd answers", SOON, || {
            let ran = self.ctl_believing(if server == "server" { "ca" } else { server }, &["endpoint", "health"]);
            let log = || std::fs::read_to_string(self.lab.directory.join("secured.log")).unwrap_or_default();
            if ran.code == 0 { Ok(()) } else { Err(format!("{}{}", ran.stderr, log())) }
        });
    }

    fn stop(&mut self) {
        if let Some(mut etcd) = self.etcd.take() {
            let _ = etcd.kill();
            let _ = etcd.wait();
        }
    }

    fn store(&self) -> Namespace {
        Namespace(self.lab.topology.store().namespace)
    }

    fn ctl(&self, arguments: &[&str]) -> Ran {
        self.ctl_believing("ca", arguments)
    }

    fn ctl_believing(&self, ca: &str, arguments: &[&str]) -> Ran {
        let (ca, cert, key) = (
            self.certificates.path(&format!("{ca}.pem")),
            self.certificates.path("client.pem"),
            self.certificates.path("client.key"),
        );
        let prefix = [
            "env",
            "ETCDCTL_API=3",
            "etcdctl",
            "--command-timeout=5s",
            "--endpoints",
            &self.endpoint,
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
        ];
        let argv: Vec<&str> = prefix.iter().chain(arguments).copied().collect();
        self.store().run(&argv)
    }

    /// Makes an agent that trusts `ca` and shows the certificate of `client`.
    fn agent(&self, number: u8, ca: &str, client: &str) -> Agent {
        let mut agent = self.lab.agent(number);
        agent.arguments[1].clone_from(&self.endpoint);
        let flags = self.certificates.flags(ca, client);
        agent.with(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs `agent network ls` with `flags` against the second etcd, on host 1.
    fn network_ls(&self, flags: &[String]) -> Ran {
        let program = flatnet_tests::agent::program().display().to_string();
        let argv = [program, "network".to_owned(), "ls".to_owned(), format!("--endpoint={}", self.endpoint)];
        let argv: Vec<String> = argv.into_iter().chain(flags.iter().cloned()).collect();
        self.lab.host(1).run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Asserts that the command ends as "unavailable" and that the agent stays, reports a problem with the store, and
    /// has done nothing. The messages of both are about certificates.
    fn assert_kept_out(&self, ca: &str, client: &str) -> Agent {
        let ran = self.network_ls(&self.certificates.flags(ca, client));
        assert_eq!(ran.code, 5, "{}", ran.stderr);
        assert!(ran.stderr.to_lowercase().contains("certificate"), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint:") && ran.stderr.contains("--etcd-cafile"), "{}", ran.stderr);
        let mut agent = self.agent(1, ca, client);
        agent.start();
        let problem = agent.wait_for_problem("store-unreachable");
        let message = problem["message"].as_str().unwrap().to_lowercase();
        assert!(message.contains("certificate"), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains("--etcd-certfile"), "{problem}");
        assert_eq!(agent.status().unwrap()["state"], "starting");
        assert!(oracle::own_links(&agent.host).is_empty() && !agent.env_file().exists());
        agent
    }
}

fn welcome() {
    let secured = Secured::new(2);
    let mut agents = [secured.agent(1, "ca", "client"), secured.agent(2, "ca", "client")];
    agents.iter_mut().for_each(Agent::start);
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    let ran = secured.network_ls(&secured.certificates.flags("ca", "client"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("default"), "{}", ran.stdout);
    // A command beside the agent has its certificates from it.
    let ran = agents[0].command(&["network", "ls"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

fn wrong_ca() {
    let secured = Secured::new(1);
    drop(secured.assert_kept_out("other", "client"));
}

fn expired() {
    let secured = Secured::new(1);
    drop(secured.assert_kept_out("ca", "expired"));
}

fn stranger() {
    let mut secured = Secured::new(1);
    let agent = secured.assert_kept_out("ca", "stranger");
    secured.stop();
    let both = ["ca.pem", "other.pem"].map(|file| std::fs::read_to_string(secured.certificates.path(file)).unwrap());
    std::fs::write(secured.certificates.path("both.pem"), both.concat()).unwrap();
    secured.start("both.pem");
    agent.wait_converged(0);
    drop(agent);
}

fn self_signed() {
    let mut secured = Secured::new(1);
    secured.stop();
    let address = secured.endpoint.trim_start_matches("https://").trim_end_matches(":2479").to_owned();
    secured.certificates.openssl(&format!(
        "req -x509 -newkey rsa:2048 -nodes -keyout own.key -out own.pem -days 2 -subj /CN=etcd -addext subjectAltName=IP:{address}"
    ));
    secured.start_as("own", "ca.pem");
    let mut agent = secured.agent(1, "own", "client");
    agent.start();
    agent.wait_converged(0);
    // The same name and address, another key.
    drop(agent);
    secured.certificates.openssl(&format!(
        "req -x509 -newkey rsa:2048 -nodes -keyout fake.key -out fake.pem -days 2 -subj /CN=etcd -addext subjectAltName=IP:{address}"
    ));
    let ran = secured.network_ls(&secured.certificates.flags("fake", "client"));
    assert!(ran.code == 5 && ran.stderr.contains("certificate"), "{} {}", ran.code, ran.stderr);
}

fn no_pem() {
    let secured = Secured::new(1);
    let files = &secured.certificates;
    files.openssl("x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out old.pem");
    for (from, to) in [("client.key", "old.key"), ("stranger.pem", "mixed.pem"), ("client.key", "mixed.key")] {
        std::fs::copy(files.path(from), files.path(to)).unwrap();
    }
    std::fs::copy(files.path("client.pem"), files.path("locked.pem")).unwrap();
    files.openssl("pkey -in client.key -aes256 -passout pass:x -out locked.key");
    for (client, said) in [
        ("old", ["old.pem", "version 1"]),
        ("mixed", ["mixed.key", "not that of"]),
        ("locked", ["locked.key", "encrypted"]),
    ] {
        let ran = secured.agent(1, "ca", client).run();
        assert_eq!(ran.code, 3, "{client}: {}", ran.stderr);
        assert!(said.iter().all(|word| ran.stderr.contains(word)), "{client}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint:") && ran.stderr.contains("openssl"), "{client}: {}", ran.stderr);
    }
    std::fs::write(secured.certificates.path("garbage.pem"), "not a certificate").unwrap();
    std::fs::write(secured.certificates.path("garbage.key"), "not a key").unwrap();
    for (ca, client) in [("garbage", "client"), ("ca", "garbage"), ("missing", "client")] {
        let ran = secured.agent(1, ca, client).run();
        assert_eq!(ran.code, 3, "{ca} {client}: {}", ran.stderr);
        assert!(ran.stderr.contains("hint:") || ran.stderr.contains("missing"), "{}", ran.stderr);
        assert_eq!(secured.network_ls(&secured.certificates.flags(ca, client)).code, 3);
    }
}
