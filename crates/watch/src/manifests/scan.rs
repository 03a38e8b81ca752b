//! Which files are in the directory, and how to tell that one changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Files by name.
pub(super) type Files = BTreeMap<String, Fingerprint>;

/// Changes whenever a file is written, replaced or swapped with its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Manifest files directly in `dir`; symbolic links are followed.
pub(super) fn scan(dir: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_manifest(&name) {
            continue;
        }
        // A file that vanishes meanwhile, or a link to nothing, is not there.
        let Ok(meta) = fs::metadata(entry.path()) else { continue };
        if meta.is_file() {
            let fingerprint = Fingerprint {
                device: meta.dev(),
                inode: meta.ino(),
                size: meta.size(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            };
            files.insert(name, fingerprint);
        }
    }
    Ok(files)
}

fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}
