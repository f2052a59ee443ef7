//! Warm calls through the platform, beside everything less that could be called.

use std::cell::RefCell;

use serde_json::json;

use super::daemon::{Daemon, Options, Source};
use crate::{
    affinity::Pinned,
    bench::{
        Effort,
        floor::Floor,
        language::Language,
        report::Question,
        servers::{Endpoint, HearthOptions, Site},
        warm::{CORE, LOGS_OFF, Lane, Place, lane_to},
    },
};

const CONNECTIONS: [u16; 3] = [1, 16, 64];

/// Answers the questions about one language, each as soon as it is known.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    for core in [None, Some(CORE)] {
        place(&Place { section: "up-warm", site, language, effort, core }, answer)?;
    }
    Ok(())
}

fn place(place: &Place<'_>, answer: &mut dyn FnMut(Question)) -> anyhow::Result<()> {
    let Place { site, language, core, .. } = place;
    let name = |kind| place.question(kind);
    // Servers inherit the restriction of the thread that starts them.
    let pinned = core.map(Pinned::to).transpose()?;
    let bare = site.bare(language, &name("bare"));
    let nginx = match &bare {
        Ok(bare) => site.nginx(bare, &name("nginx")),
        Err(_) => Err(anyhow::anyhow!("there is no server to put behind it")),
    };
    let serve = site.hearth(language, &name("serve"), HearthOptions::default());
    let up = up(site, language, &name("up"));
    let floor = Floor::start(&site.stage, &site.root, language, &name("floor"));
    drop(pinned);

    let [bare, nginx, serve, up] =
        [bare, nginx, serve, up].map(|server| server.map_err(|error| format!("{error:#}")));
    let lanes = [
        lane_to(language.bare, &bare),
        lane_to("nginx, bare server behind", &nginx),
        Lane { headers: vec![LOGS_OFF.to_owned()], ..lane_to("hearth serve, logs off", &serve) },
        Lane { path: "/fn/hello/", ..lane_to("hearth up", &up) },
    ];
    let floor = floor.map(RefCell::new).map_err(|error| format!("{error:#}"));
    place.warm_up(&lanes, &floor);
    for connections in CONNECTIONS {
        answer(place.closed(connections, &lanes, &floor));
    }
    Ok(())
}

/// A platform with one function, which has one instance, as everything beside it.
fn up(site: &Site, language: &Language, name: &str) -> anyhow::Result<Endpoint> {
    let daemon = Daemon::start(site, name, Options::default())?;
    let source = Source::of(site, language)?;
    daemon.deploy("hello", &source, &json!({ "concurrency": 64, "max": 1 }))?;
    Ok(daemon.endpoint)
}
