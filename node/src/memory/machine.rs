//! What the operating system says of its memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Bytes that this program may still take before something must give way: of the machine, and of every control group (container, service) that it is
/// in. None where the system does not tell.
pub(super) fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// Linux, with its files below `root`.
fn available_under(root: &Path) -> Option<u64> {
    let machine = field(&root.join("proc/meminfo"), "MemAvailable:")?.saturating_mul(1024);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().flat_map(|line| groups_of(root, line)).filter_map(|group| group.left_bytes());
    left.chain([machine]).min()
}

/// A control group's folder, and the names of its files.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    taken: &'static str,
    /// The field of `memory.stat` with the cached files that are given up first.
    cached: &'static str,
}

impl Group {
    fn left_bytes(&self) -> Option<u64> {
        let number = |name| fs::read_to_string(self.folder.join(name)).ok()?.trim().parse::<u64>().ok();
        // No limit reads "max", or as an absurd number.
        let (limit, taken) = (number(self.limit)?, number(self.taken)?);
        let cached = field(&self.folder.join("memory.stat"), self.cached).unwrap_or(0);
        Some(limit.saturating_sub(taken.saturating_sub(cached)))
    }
}

/// The groups of a line of `/proc/self/cgroup` that limit memory, from the innermost to the outermost. Inside a container the path may be that of the
/// host and lead nowhere; the outermost is there always.
fn groups_of(root: &Path, line: &str) -> Vec<Group> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (base, limit, taken, cached) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        _ if controllers.split(',').any(|it| it == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        }
        _ => return Vec::new(),
    };
    let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|it| root.join(base).join(it));
    folders.map(|folder| Group { folder, limit, taken, cached }).collect()
}

/// The first number after `name` at the beginning of a line.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:  9999 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n");

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        available_under(root(&[&[MEMINFO], files].concat()).path())
    }

    #[test]
    fn without_groups_the_machine_is_the_limit() {
        assert_eq!(available(&[]), Some(1_024_000));
        assert_eq!(available(&[("proc/self/cgroup", "garbage\n1:cpu:/a\n0::/a\n")]), Some(1_024_000));
        assert_eq!(available_under(root(&[]).path()), None);
    }

    #[test]
    fn the_tightest_group_on_the_way_is_the_limit() {
        let files = [
            ("proc/self/cgroup", "0::/service/node\n"),
            ("sys/fs/cgroup/service/node/memory.max", "max\n"),
            ("sys/fs/cgroup/service/node/memory.current", "700\n"),
            ("sys/fs/cgroup/service/memory.max", "1000\n"),
            ("sys/fs/cgroup/service/memory.current", "900\n"),
            ("sys/fs/cgroup/service/memory.stat", "anon 650\ninactive_file 250\n"),
        ];
        assert_eq!(available(&files), Some(350));
    }

    #[test]
    fn the_older_kind_of_groups_is_read_too_and_a_path_that_leads_nowhere_is_no_harm() {
        let files = [
            ("proc/self/cgroup", "4:cpu,memory:/host/path\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1200\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 9\ntotal_inactive_file 300\n"),
        ];
        assert_eq!(available(&files), Some(100));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes().unwrap() > 0);
    }
}
