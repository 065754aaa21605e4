//! The labs of `vagrant/`, provisioned by their own scripts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab, VmShape};

/// The time for a script that installs a package, starts services and waits for the overlay.
const SCRIPT: Duration = Duration::from_secs(400);

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("vagrants_gre_lab_by_hand_works", || lab("gre", "by-hand", VmShape::plain(2))).in_vms(),
        Test::new("vagrants_gre_lab_works", || lab("gre", "", VmShape::servers(2))).of_package(),
        Test::new("vagrants_flannel_lab_works", || lab("flannel", "", VmShape::servers(1).with_master())).of_package(),
        Test::new("vagrants_overlay_lab_works", || lab("overlay", "", VmShape::servers(3))).of_package(),
    ]
}

fn lab(name: &str, way: &str, shape: VmShape) {
    let lab = VmLab::new(shape);
    lab.each(prepare);
    // Vagrant brings machines up one after the other, in this order; the first has the store.
    for vm in lab.machines() {
        run(vm, &Path::new(name).join(way).join(format!("{}.sh", vm.name)));
    }
    run(lab.vm(1), &Path::new(name).join("check.sh"));
    // `vagrant provision` runs them again.
    if way.is_empty() {
        run(lab.vm(1), &Path::new(name).join("host1.sh"));
        run(lab.vm(1), &Path::new(name).join("check.sh"));
    }
}

fn run(vm: &Vm, script: &Path) {
    let ran = vm.sh_within(&format!("/flatnet/vagrant/{}", script.display()), SCRIPT);
    assert_eq!(ran.rc, 0, "{} on {}: {}\n{}", script.display(), vm.name, ran.output, vm.logs());
}

/// Prepares what the Vagrantfile brings: the scripts and the package.
fn prepare(vm: &Vm) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vagrant");
    for script in scripts(&directory) {
        let path = Path::new("/flatnet/vagrant").join(script.strip_prefix(&directory).unwrap());
        vm.put(path.to_str().unwrap(), 0o755, &fs::read(&script).unwrap());
    }
    vm.ok("[ ! -e /lab/flatnet-agent.deb ] || ln -s /lab/flatnet-agent.deb /flatnet/flatnet-agent.deb");
}

fn scripts(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(scripts(&path));
        } else if path.extension().is_some_and(|extension| extension == "sh") {
            found.push(path);
        }
    }
    found
}
