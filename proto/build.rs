//! Compiles the protocol definitions without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=flatnet");
    let files = protox::compile(["flatnet/agent/v1/agent.proto", "flatnet/controlplane/v1/controlplane.proto"], ["."])?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(std::path::Path::new(&out).join("descriptors.bin"), prost::Message::encode_to_vec(&files))?;
    tonic_prost_build::configure()
        // The status document is this message: `--json` prints it with the field names of the definition.
        .type_attribute(".flatnet.agent.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(files)?;
    Ok(())
}
