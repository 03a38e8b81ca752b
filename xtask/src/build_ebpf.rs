//! Builds the eBPF programs into ebpf/prebuilt.

/// Builds, or with `check` compares.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    anyhow::bail!("not written yet (check = {check})")
}
