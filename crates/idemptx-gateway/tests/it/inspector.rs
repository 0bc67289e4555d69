//! The inspector page in a real browser.

mod browser;

use std::net::SocketAddr;

use browser::Browser;

use crate::support::http_client::post;
use crate::support::operated_gateway::OperatedGateway;

#[test]
fn an_operator_resolves_a_stuck_key_and_sees_what_comes_of_it() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = scene();
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("document.querySelectorAll('#records tbody .link').length === 1");
    browser.until("document.querySelector('#tiles').innerText.includes('Replayed\\n3')");
    assert_eq!(browser.value("document.querySelector('#live').textContent"), "live");
    keep(&mut browser, "desktop");

    // What is in doubt?
    browser.value("document.querySelector('input[value=in-doubt]').click()");
    browser.until("document.querySelector('#records tbody').innerText.includes('outcome unknown')");
    browser.value("document.querySelector('#records tbody .link').click()");
    browser.until("!document.querySelector('#record').hidden");
    browser.until("document.activeElement.id === 'record-title'");
    let story = "document.querySelector('#story').innerText";
    browser.until(&format!("{story}.includes('Claimed, attempt 1')"));
    keep(&mut browser, "record");
    let dark = serde_json::json!({ "name": "prefers-color-scheme", "value": "dark" });
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.value(ground);
    browser.call("Emulation.setEmulatedMedia", &serde_json::json!({ "features": [dark] }));
    assert_ne!(browser.value(ground), light, "at night it is dark");
    keep(&mut browser, "dark");
    browser.call("Emulation.setEmulatedMedia", &serde_json::json!({ "features": [] }));

    // The dialog says what will happen, and to leave it is what comes first.
    let store = "[...document.querySelectorAll('#actions button')]\
                 .find((it) => it.textContent === 'Store an answer')";
    browser.value(&format!("{store}.click()"));
    browser.until("document.querySelector('#confirm').open");
    assert_eq!(browser.value("document.activeElement.textContent"), "Cancel");
    let text = browser.value("document.querySelector('#confirm-text').textContent");
    assert!(text.as_str().unwrap().contains("nothing is executed"), "{text}");
    keep(&mut browser, "confirm");
    browser.press("Enter");
    browser.until("!document.querySelector('#confirm').open");
    assert_eq!(refused(&gateway), 409, "nothing has happened yet");

    browser.value(&format!("{store}.click()"));
    browser.value("document.querySelector('#answer-body').value = '{\"paid\":true}'");
    browser.value("document.querySelector('#confirm-yes').click()");
    browser.until("document.querySelector('#notice').textContent.startsWith('Stored:')");
    browser.until(&format!("{story}.includes('An operator stored an answer')"));
    let reply = post(gateway.public, "/die", "tea").key("stuck").reply();
    assert_eq!((reply.status, &*reply.body), (201, "{\"paid\":true}"));
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    gateway.upstream.open();
}

#[test]
fn what_was_cancelled_is_not_done_when_the_next_is_confirmed() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = scene();
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("!document.querySelector('#main').hidden");
    browser.value("document.querySelector('input[value=in-doubt]').click()");
    browser.until("document.querySelector('#records tbody').innerText.includes('outcome unknown')");
    browser.value("document.querySelector('#records tbody .link').click()");
    browser.until("document.querySelectorAll('#actions button').length === 2");
    // Both within one frame, as a slow machine has it: browsers tell of a dialog's end in the next.
    browser.value(
        "{ const [first] = document.querySelectorAll('#actions button'); \
         first.click(); document.querySelector('#confirm-no').click(); \
         first.click(); document.querySelector('#confirm-yes').click(); }",
    );
    browser.until("document.querySelector('#notice').classList.contains('good')");
    browser.until("document.querySelector('#story').innerText.includes('An operator')");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    gateway.upstream.open();
}

#[test]
fn a_key_is_found_with_nothing_but_a_keyboard() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = scene();
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("!document.querySelector('#main').hidden");
    browser.value("document.querySelector('#pause').focus()");
    let focused = "document.activeElement.id";
    for _ in 0..6 {
        browser.press("Tab");
        if browser.value(focused) == "find-key" {
            break;
        }
    }
    assert_eq!(browser.value(focused), "find-key");
    for letter in "tea-1".chars() {
        browser.press(&letter.to_string());
    }
    browser.press("Enter");
    browser.until("document.activeElement.id === 'record-title'");
    browser.until("document.querySelector('#record-facts').innerText.includes('201, ')");
    let story = browser.value("document.querySelector('#story').innerText");
    assert!(story.as_str().unwrap().contains("Replayed, 3 times"), "{story}");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    gateway.upstream.open();
}

#[test]
fn a_search_that_fails_leaves_nothing_of_the_one_before() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = scene();
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("document.querySelector('#doubts').textContent === ' (1)'");
    let find = |browser: &mut Browser, text: &str| {
        browser.value(&format!("document.querySelector('#find-key').value = '{text}'"));
        browser.value("document.querySelector('#find button').click()");
    };
    find(&mut browser, "stuck");
    browser.until("document.querySelectorAll('#actions button').length === 2");
    browser.until("document.querySelector('#record-facts').innerText.includes('POST /die')");
    let note = "document.querySelector('#find-note').textContent";
    find(&mut browser, "other");
    browser.until(&format!("{note}.startsWith('No record for this key')"));
    browser.until("document.querySelector('#record').hidden");
    find(&mut browser, &"x".repeat(300));
    browser.until(&format!("{note}.includes('longer than the 255 bytes')"));
    // The digits of a list or of the log.
    let digits = "document.querySelector('#records tbody .link').textContent";
    let digits = browser.value(digits).as_str().unwrap().to_owned();
    find(&mut browser, &digits);
    browser.until("!document.querySelector('#record').hidden");
    gateway.upstream.open();
}

#[test]
fn on_a_phone_nothing_is_wider_than_the_screen() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = scene();
    browser.open(&page(gateway.admin), 360, 740);
    browser.until("document.querySelectorAll('#records tbody .link').length === 1");
    browser.value("document.querySelector('input[value=in-doubt]').click()");
    browser.until("document.querySelector('#records tbody').innerText.includes('outcome unknown')");
    browser.value("document.querySelector('#records tbody .link').click()");
    browser.until("document.querySelectorAll('#actions button').length === 2");
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.value(overflow), 0);
    let small = "[...document.querySelectorAll('button, input, summary')].filter((it) => \
                 it.checkVisibility() && !it.matches('.link, [type=radio]') && \
                 it.getBoundingClientRect().height < 36).map((it) => it.outerHTML)";
    let small = browser.value(&format!("({small}).join('')"));
    assert!(!small.as_str().unwrap().contains("<button"), "too small for a finger: {small}");
    keep(&mut browser, "phone");
    browser.value("document.querySelector('#record-close').click()");
    browser.value("scrollTo(0, 0)");
    keep(&mut browser, "phone-top");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    gateway.upstream.open();
}

#[test]
fn everything_that_can_be_used_has_a_name() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = scene();
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("document.querySelectorAll('#records tbody .link').length === 1");
    browser.call("Accessibility.enable", &serde_json::json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", &serde_json::json!({}));
    let mut used = 0;
    for node in tree["nodes"].as_array().unwrap() {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if ["button", "textbox", "radio", "checkbox", "link", "table", "dialog"].contains(&role) {
            used += 1;
            let name = node["name"]["value"].as_str().unwrap_or_default();
            assert!(!name.is_empty(), "{node}");
        }
    }
    assert!(used > 8, "{used} of them are there");
    gateway.upstream.open();
}

#[test]
fn a_token_is_asked_for_and_stays_in_its_tab() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = OperatedGateway::configured("", "token = \"s3cret\"", "");
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("!document.querySelector('#login').hidden");
    let main = browser.value("document.querySelector('#main').hidden");
    assert_eq!(main, true, "nothing is shown before");
    let enter = |browser: &mut Browser, token: &str| {
        browser.value(&format!("document.querySelector('#token').value = '{token}'"));
        browser.value("document.querySelector('#login button').click()");
    };
    enter(&mut browser, "wrong");
    let text = "document.querySelector('#login-text').textContent";
    browser.until(&format!("{text} === 'Wrong token.'"));
    enter(&mut browser, "s3cret");
    browser.until("!document.querySelector('#main').hidden");
    browser.until("document.querySelector('#live').textContent === 'live'");
    assert_eq!(browser.value("document.cookie + localStorage.length"), "0");
}

#[test]
fn when_the_gateway_is_gone_the_page_says_so() {
    let Some(mut browser) = Browser::start() else { return };
    let gateway = OperatedGateway::start("");
    browser.open(&page(gateway.admin), 1280, 900);
    browser.until("document.querySelector('#live').textContent === 'live'");
    drop(gateway);
    browser.until("document.querySelector('#live').textContent === 'no response'");
    browser.until("document.querySelector('#notice').textContent.includes('does not respond')");
}

/// Starts a gateway with one key in flight, one settled and replayed three times, and one whose
/// outcome is unknown.
fn scene() -> OperatedGateway {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    let (public, upstream) = (gateway.public, gateway.upstream.clone());
    for _ in 0..4 {
        assert_eq!(post(public, "/orders", "tea").key("tea-1").reply().status, 201);
    }
    assert_eq!(post(public, "/orders", "coffee").key("tea-1").reply().status, 422);
    assert_eq!(post(public, "/die", "tea").key("stuck").reply().status, 502);
    assert_eq!(refused(&gateway), 409);
    std::thread::spawn(move || post(public, "/slow", "tea").key("in-flight").reply());
    upstream.reach(3);
    gateway
}

fn refused(gateway: &OperatedGateway) -> u16 {
    post(gateway.public, "/die", "tea").key("stuck").reply().status
}

fn page(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// Leaves a picture where `INSPECTOR_PICTURES` says, for people to look at.
fn keep(browser: &mut Browser, name: &str) {
    let picture = browser.picture(name != "desktop" && name != "confirm");
    assert!(picture.len() > 10_000, "there is something to see");
    if let Some(folder) = std::env::var_os("INSPECTOR_PICTURES") {
        let path = std::path::Path::new(&folder).join(format!("{name}.png.base64"));
        std::fs::write(path, picture).unwrap();
    }
}
