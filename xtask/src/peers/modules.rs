//! The guest's kernel modules: which files a list of modules needs, and the index that `modprobe` reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernel::unxz;

/// An unpacked kernel module.
pub struct Module {
    /// Its object file, uncompressed.
    pub object: Vec<u8>,
    /// The modules it names in `depends=`.
    depends: Vec<String>,
}

/// Modules by name, with `_` where file names may have `-`.
pub type Modules = BTreeMap<String, Module>;

/// Reads the named modules and all that they depend on from a kernel's module directory. A name without a file is
/// built into the kernel.
pub fn read(directory: &Path, names: &[&str]) -> Result<Modules> {
    let mut files = BTreeMap::new();
    index(directory, &mut files)?;
    let mut modules = Modules::new();
    let mut wanted: Vec<String> = names.iter().map(|name| canonical(name)).collect();
    while let Some(name) = wanted.pop() {
        let Some(path) = files.get(&name) else { continue };
        if modules.contains_key(&name) {
            continue;
        }
        let mut object = std::fs::read(path)?;
        if path.extension().is_some_and(|extension| extension == "xz") {
            object = unxz(&object).with_context(|| path.display().to_string())?;
        }
        let depends = depends(&object);
        wanted.extend(depends.iter().cloned());
        modules.insert(name, Module { object, depends });
    }
    Ok(modules)
}

/// The text of `modules.dep` (depmod(8)) for modules that lie side by side as `NAME.ko`: each line names a module and
/// all it needs, the first to be loaded last.
pub fn modules_dep(modules: &Modules) -> String {
    let mut text = String::new();
    for name in modules.keys() {
        let mut needs = Vec::new();
        collect(modules, name, &mut needs);
        text.push_str(&format!("{name}.ko:"));
        needs.iter().rev().for_each(|need| text.push_str(&format!(" {need}.ko")));
        text.push('\n');
    }
    text
}

/// Adds what a module needs in an order that can be loaded.
fn collect<'a>(modules: &'a Modules, name: &str, needs: &mut Vec<&'a str>) {
    let Some(module) = modules.get(name) else { return };
    for need in module.depends.iter().filter(|need| modules.contains_key(*need)) {
        if !needs.contains(&need.as_str()) {
            collect(modules, need, needs);
            needs.push(need);
        }
    }
}

/// The module files under a directory, by canonical name.
fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in directory.read_dir().with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz")) = entry.file_name().to_string_lossy().split_once('.') {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// `depends=a,b` from the object's `.modinfo`: strings ended by zero bytes.
fn depends(object: &[u8]) -> Vec<String> {
    let list = object.split(|&byte| byte == 0).find_map(|string| string.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default()).into_owned();
    list.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_dependencies_and_orders_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nvme")).unwrap();
        let module = |name: &str, depends: &str| {
            std::fs::write(dir.path().join(name), format!("\x7fELF\0license=GPL\0depends={depends}\0x"))
                .unwrap();
        };
        module("nvme/nvmet-tcp.ko", "configfs,nvmet");
        module("nvme/nvmet.ko", "configfs,nvme-core");
        module("configfs.ko", "");
        module("other.ko", "");
        let modules = read(dir.path(), &["nvmet-tcp", "ext4"]).unwrap();
        assert_eq!(modules.keys().collect::<Vec<_>>(), ["configfs", "nvmet", "nvmet_tcp"]);
        let index = modules_dep(&modules);
        assert!(index.lines().any(|line| line == "nvmet_tcp.ko: nvmet.ko configfs.ko"), "{index}");
        assert!(index.lines().any(|line| line == "configfs.ko:"), "{index}");
    }
}
