//! Flatnet's wire: protocol buffers and the code generated from them.

/// The agent's local socket.
pub mod agent {
    /// Version 1.
    #[expect(missing_docs, reason = "generated; documented in agent.proto")]
    #[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("flatnet.agent.v1");
    }
}

/// The control plane's server.
pub mod controlplane {
    /// Version 1.
    #[expect(missing_docs, reason = "generated; documented in controlplane.proto")]
    #[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("flatnet.controlplane.v1");
    }
}

/// Every definition here as an encoded `google.protobuf.FileDescriptorSet`, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
