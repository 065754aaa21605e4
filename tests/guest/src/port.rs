//! The serial port: requests in, answers out, one at a time. The other end is `flatnet_lab::vm::guest`.
//!
//! All numbers are 32 bits, little endian. A request is a kind, the length of what follows, and that:
//!
//! | kind | what follows | answer's code |
//! |---|---|---|
//! | 1, run | seconds it may take, a shell script | its exit code; 124 if it took too long |
//! | 2, write | mode, length of the path, path, content | 0, or 1 with the reason |
//!
//! An answer is a code, the length of the output, the output.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{doing, script};

/// The port's name, set on the machine's command line; its device's name varies.
const PORT: &str = "flatnet.lab";
/// The longest request, in bytes: they are scripts and files of tests, and anything longer is noise on the line.
const MAX_REQUEST_BYTES: u32 = 256 << 20;

/// Answers requests for ever.
pub fn serve() -> Result<(), String> {
    let path = find_port()?;
    let mut port = File::options().read(true).write(true).open(&path).map_err(doing(path.display()))?;
    loop {
        let kind = read_number(&mut port)?;
        let length = read_number(&mut port)?;
        if length > MAX_REQUEST_BYTES {
            return Err(format!("a request of {length} bytes"));
        }
        let mut request = vec![0; usize::try_from(length).map_err(doing("length"))?];
        read_fully(&mut port, &mut request)?;
        let (code, output) = answer(kind, &request).unwrap_or_else(|message| (1, message.into_bytes()));
        let mut reply = code.to_le_bytes().to_vec();
        reply.extend(u32::try_from(output.len()).map_err(doing("output"))?.to_le_bytes());
        reply.extend(output);
        port.write_all(&reply).map_err(doing("port"))?;
    }
}

fn answer(kind: u32, request: &[u8]) -> Result<(u32, Vec<u8>), String> {
    let (number, rest) = split_number(request)?;
    match kind {
        1 => script::run(&String::from_utf8_lossy(rest), u64::from(number)),
        2 => {
            let (length, rest) = split_number(rest)?;
            let length = usize::try_from(length).map_err(doing("length"))?;
            let (path, content) = rest.split_at_checked(length).ok_or("a path longer than its request")?;
            write_file(Path::new(&*String::from_utf8_lossy(path)), number, content).map(|()| (0, Vec::new()))
        }
        kind => Err(format!("unknown request {kind}")),
    }
}

fn write_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), String> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(doing(parent.display()))?;
    }
    // Another file, then its name: a running program's own file cannot be written to.
    let beside = path.with_extension("lab-new");
    fs::write(&beside, content).map_err(doing(beside.display()))?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).map_err(doing(beside.display()))?;
    fs::rename(&beside, path).map_err(doing(path.display()))
}

fn find_port() -> Result<PathBuf, String> {
    let ports = Path::new("/sys/class/virtio-ports");
    for entry in fs::read_dir(ports).map_err(doing(ports.display()))?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(format!("no port is named {PORT}"))
}

fn read_number(port: &mut File) -> Result<u32, String> {
    let mut bytes = [0; 4];
    read_fully(port, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads until `buffer` is full. The port reads as ended while nobody is at the other end: that is waiting, not the
/// end.
fn read_fully(port: &mut File, mut buffer: &mut [u8]) -> Result<(), String> {
    while !buffer.is_empty() {
        match port.read(buffer).map_err(doing("port"))? {
            0 => script::pause(),
            count => buffer = buffer.split_at_mut(count).1,
        }
    }
    Ok(())
}

fn split_number(bytes: &[u8]) -> Result<(u32, &[u8]), String> {
    let (number, rest) = bytes.split_first_chunk().ok_or("a request without its number")?;
    Ok((u32::from_le_bytes(*number), rest))
}
