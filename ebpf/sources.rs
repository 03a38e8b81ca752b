//! Which files the prebuilt object is made from, and their hashes.
//!
//! Included by path from the build script of `netd-bpf`, which checks them, and from `xtask`, which writes them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The object, relative to the repository.
pub(crate) const OBJECT: &str = "ebpf/prebuilt/netd.bpf.o";
/// The list of hashes beside it, relative to the repository, as `sha256sum` writes and checks it.
pub(crate) const HASHES: &str = "ebpf/prebuilt/SOURCES.sha256";

/// Files that are sources as they are, relative to the repository.
const FILES: &[&str] = &[
    "ebpf/abi/Cargo.toml",
    "ebpf/progs/Cargo.lock",
    "ebpf/progs/Cargo.toml",
    "ebpf/progs/rust-toolchain.toml",
];
/// Directories whose files are all sources, relative to the repository.
pub(crate) const DIRECTORIES: &[&str] = &["ebpf/abi/src", "ebpf/progs/src"];

/// One line a file, `<sha256>  <path>`, in the order of the paths; the object is the last.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn list(root: &Path) -> io::Result<String> {
    let mut files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    for directory in DIRECTORIES {
        collect(root, Path::new(directory), &mut files)?;
    }
    files.sort();
    files.push(PathBuf::from(OBJECT));
    let mut list = String::new();
    for file in files {
        let hash = hash_of(&[root.join(&file)])?;
        // Writing to a String does not fail.
        let _ = writeln!(list, "{hash}  {}", file.display());
    }
    Ok(list)
}

/// SHA-256 of the files' contents one after the other, in lower-case hexadecimal digits.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn hash_of(files: &[PathBuf]) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for file in files {
        let content =
            fs::read(file).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))?;
        hasher.update(content);
    }
    Ok(hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
