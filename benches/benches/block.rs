use benches::block::client::{Client, Work};
use benches::block::content::Expected;
use benches::block::server::{Cache, StorageDaemon};
use std::path::Path;
fn main() {
    let qsd = StorageDaemon::find().unwrap();
    println!("{}", qsd.version);
    let dir = Path::new("/tmp/bench-run");
    std::fs::create_dir_all(dir).unwrap();
    let disk = dir.join("disk");
    let mut expected = Expected::new(65536);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&disk)
        .unwrap();
    expected.create(&file).unwrap();
    let mut runs = Vec::new();
    for cache in [Cache::Page, Cache::Direct] {
        for aio in cache.aio() {
            let socket = dir.join(format!("{aio}-{}", cache.direct()));
            let _ = std::fs::remove_file(&socket);
            let mut server = qsd.serve(&disk, cache, aio, &socket).unwrap();
            let client = Client::new(server.connect().unwrap()).unwrap();
            println!("{cache:?} {aio} {client:?}");
            runs.push((cache, aio, server, client));
        }
    }
    for round in 0..4 {
        for (cache, aio, _, client) in &mut runs {
            for (work, log) in [
                (Work::Read, false),
                (Work::Read, true),
                (Work::Write, false),
            ] {
                let n = if *cache == Cache::Page { 30000 } else { 5000 };
                if log {
                    client.log(true).unwrap();
                }
                let t = client.round(work, n, &mut expected).unwrap();
                let mut lost = client.touched.clone();
                lost.subtract(&client.dirty);
                println!(
                    "{round} {cache:?} {aio} {work:?} log {log}: {:.0} IOPS dirty {} touched {} lost {}",
                    f64::from(n) / t.as_secs_f64(),
                    client.dirty.count(),
                    client.touched.count(),
                    lost.count()
                );
                if log {
                    client.log(false).unwrap();
                }
            }
        }
    }
    println!("wrong {}", expected.wrong(&file).unwrap());
}
