//! TCP takes certificates on both sides, and names that stand in them.

use super::bed::*;
use crate::agent::*;
use crate::lock::{LockedSet, Terms};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// A certificate for this name, trusting this authority.
    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |what: &str, text: String| {
            let path = self.folder.join(format!("{name}.{what}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Identity {
            authorities: self.folder.join("ca.pem"),
            certificate: file("pem", certificate.pem()),
            key: file("key", key.serialize_pem()),
        }
    }
}

#[test]
fn both_sides_show_certificates_and_use_the_names_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let theirs = Authority::new(folder.path(), "theirs");
    let inside = Arc::default();
    let host = host(&folder.path().join("state"), LONG, &[("disk0", &inside)]);
    let endpoint: Endpoint = "tls:localhost:0".parse().unwrap();
    let server = ours.identity("localhost");
    let agent = Running::serve(folder, endpoint, Some(&server), host, Limits::default());
    let place = agent.place();

    let agents = Agents::new(Some(&ours.identity("fleet"))).unwrap();
    let lock = |agents: &Agents, who: &str| LockedSet::lock(alone(agents, &place), Terms::new(who));
    let set = lock(&agents, "fleet").unwrap();
    let command = agents.remote(place.clone());
    let command = crate::lock::Remote::<DeviceConfig>::free_command(&command);
    assert!(
        command.contains("lock free disk0@tls:localhost:"),
        "{command}"
    );
    assert!(command.contains("--cert"), "{command}");
    set.release();
    let another = lock(&agents, "somebody-else").unwrap_err().to_string();
    assert!(another.contains("not one of 'somebody-else'"), "{another}");
    let freed = agents.free(&place, "root").unwrap_err().to_string();
    assert!(freed.contains("not one of 'root'"), "{freed}");

    // Nobody without a certificate, and nobody with one of others.
    let stranger = Agents::new(Some(&Identity {
        authorities: server.authorities.clone(),
        ..theirs.identity("fleet")
    }));
    assert!(stranger.unwrap().status(&place).is_err());
    let credulous = Agents::new(Some(&theirs.identity("fleet"))).unwrap();
    assert!(credulous.status(&place).is_err(), "the agent is not theirs");
    assert!(Agents::new(None).unwrap().status(&place).is_err());

    // And no agent on TCP without.
    let empty = tempfile::tempdir().unwrap();
    let host = Host::open(Vec::new(), empty.path(), LONG).unwrap();
    let naked = Server::bind(
        &"tls:localhost:0".parse().unwrap(),
        None,
        host,
        Limits::default(),
    );
    assert!(matches!(naked, Err(ServerError::Naked(_))), "{naked:?}");
}
