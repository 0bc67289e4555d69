//! File system of a file.

use std::path::Path;

/// The number by which Linux knows the kind of a file system.
#[cfg(target_os = "linux")]
pub(super) fn kind(path: &Path) -> Option<u64> {
    let about = rustix::fs::statfs(path).ok()?;
    u64::try_from(about.f_type).ok().map(|kind| kind & 0xffff_ffff)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn kind(_: &Path) -> Option<u64> {
    None
}

/// Returns the number of bytes that this process may still write there.
#[cfg(target_os = "linux")]
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(path).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Returns true if a file is a mount of its own, beside which nothing is that belongs to it.
#[cfg(target_os = "linux")]
pub(super) fn is_mounted_alone(path: &Path, folder: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let mount = |path: &Path| {
        let about = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
        let is_known = about.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        is_known.then_some(about.stx_mnt_id)
    };
    mount(path).zip(mount(folder)).is_some_and(|(file, folder)| file != folder)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_mounted_alone(_: &Path, _: &Path) -> bool {
    false
}

/// File systems whose locks and shared memory do not reach every host.
pub(super) const NETWORKS: &[(u64, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
];
/// File systems that may be a network's, and whose locks then may not reach every host; FUSE stands
/// for sshfs, GlusterFS, virtiofs and many others, which cannot be told apart by the number.
pub(super) const FOREIGN: &[(u64, &str)] = &[
    (0x6573_5546, "FUSE (sshfs, GlusterFS, virtiofs, …)"),
    (0x786f_4256, "a shared folder of VirtualBox"),
];
/// File systems in memory, which end with the power.
pub(super) const MEMORY: &[u64] = &[0x0102_1994, 0x8584_58f6];
/// The writable layer of a container: gone with it.
pub(super) const OVERLAY: u64 = 0x794c_7630;
