//! Compiles the protocol definitions without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=flatnet");
    let files = protox::compile(["flatnet/agent/v1/agent.proto"], ["."])?;
    tonic_prost_build::configure()
        // The status document is this message: `--json` prints it with the field names of the definition.
        .type_attribute(".flatnet.agent.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(files)?;
    Ok(())
}
