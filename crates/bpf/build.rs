//! Checks that the prebuilt eBPF object is of the sources beside it, and names the layout of the maps.

#[path = "../../ebpf/sources.rs"]
mod sources;

use std::fs;
use std::path::Path;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for watched in sources::DIRECTORIES.iter().chain(&["ebpf/prebuilt", "ebpf/abi/Cargo.toml", "ebpf/progs"])
    {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    if let Err(reason) = check(&root) {
        println!("cargo::error={reason}");
    }
}

fn check(root: &Path) -> Result<(), String> {
    let list = sources::list(root).map_err(|e| format!("hash the sources of the eBPF object: {e}"))?;
    let committed = fs::read_to_string(root.join(sources::HASHES))
        .map_err(|e| format!("read {}: {e}", sources::HASHES))?;
    if list != committed {
        return Err(format!(
            "{} was not built from the sources in ebpf/abi and ebpf/progs: run `cargo xtask build-ebpf`",
            sources::OBJECT
        ));
    }
    let layout = sources::hash_of(&[root.join("ebpf/abi/src/lib.rs")])
        .map_err(|e| format!("hash the layout of the maps: {e}"))?;
    let (layout, _) = layout.split_at(8);
    println!("cargo::rustc-env=NETD_EBPF_LAYOUT={layout}");
    println!("cargo::rustc-env=NETD_EBPF_OBJECT={}", root.join(sources::OBJECT).display());
    Ok(())
}
