// Follows the page's changes over one event stream. Without this script the page is a snapshot whose
// forms work; all that is here makes it live: sections are exchanged in place, ages and countdowns
// run, forms are sent without leaving the page.
"use strict";

(() => {
  const STALE_AFTER = 10; // seconds without news; the supervisor sends the time every two seconds
  const body = document.body;
  const fresh = document.getElementById("fresh");
  const said = document.getElementById("said");
  if (!body.dataset.live || !fresh) return;

  // Exchanging a section without losing focus, what is typed, open dialogs and scroll positions:
  // nodes that are the same stay the same nodes.
  const KEPT = new Set(["open", "value", "hidden", "disabled"]);

  function sameNode(now, next) {
    return now.nodeType === next.nodeType && now.nodeName === next.nodeName && (now.id || "") === (next.id || "");
  }

  function isAsking(node) {
    return node.nodeType === Node.ELEMENT_NODE && (node.matches(":popover-open") || node.querySelector(":popover-open"));
  }

  function morph(now, next) {
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
      return;
    }
    if (now.matches("[popover]") && now.matches(":popover-open")) return; // asked is what was read
    if (now.dataset.held !== undefined) return; // a log that is followed
    for (const { name } of [...now.attributes]) {
      if (!next.hasAttribute(name) && !KEPT.has(name)) now.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (now.getAttribute(name) !== value && !KEPT.has(name)) now.setAttribute(name, value);
    }
    morphChildren(now, next);
  }

  function morphChildren(now, next) {
    let at = now.firstChild;
    for (const child of [...next.childNodes]) {
      let match = at;
      while (match && !sameNode(match, child)) match = match.nextSibling;
      if (match && (match === at || child.id)) {
        while (at !== match) {
          const gone = at;
          at = at.nextSibling;
          if (!isAsking(gone)) gone.remove();
        }
        at = at.nextSibling;
        morph(match, child);
      } else {
        now.insertBefore(child, at);
      }
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      if (!isAsking(gone)) gone.remove();
    }
  }

  function exchange(name, html) {
    const section = document.getElementById(name);
    if (!section) return;
    const next = document.createElement("template");
    next.innerHTML = html;
    morphChildren(section, next.content);
    dispatchEvent(new CustomEvent("section", { detail: section }));
    enhance(section);
  }

  // Times. The server's clock counts: the difference to ours is known from every event.
  let ahead = 0;
  let heard = Date.now();

  function inWords(seconds) {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
    }
    return `${Math.max(0, Math.floor(seconds))} s`;
  }

  function tick() {
    const now = Date.now() + ahead;
    for (const each of document.querySelectorAll("time[data-age]")) {
      put(each, inWords((now - Date.parse(each.dateTime)) / 1000));
    }
    for (const each of document.querySelectorAll("time[data-left]")) {
      const left = Math.max(0, Math.round((Date.parse(each.dateTime) - now) / 1000));
      put(each, left < 60 ? `${left} s` : `${Math.floor(left / 60)} min ${left % 60} s`);
    }
    const silence = Math.floor((Date.now() - heard) / 1000);
    const stale = silence > STALE_AFTER || source.readyState !== EventSource.OPEN;
    body.classList.toggle("stale", stale);
    body.classList.toggle("following", !stale);
    put(fresh, stale ? `${lost ? "supervisor unreachable, trying again; " : ""}last update ${inWords(silence)} ago` : `last update ${inWords(silence)} ago`);
  }

  function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function localTimes(root) {
    for (const each of root.querySelectorAll("time[data-at]")) {
      const then = new Date(each.dateTime);
      const day = then.toDateString() === new Date().toDateString() ? {} : { month: "short", day: "numeric" };
      put(each, then.toLocaleString(undefined, { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }));
    }
  }

  // The stream.
  let lost = false;
  let source;

  function follow() {
    source = new EventSource(body.dataset.live);
    source.addEventListener("sections", (event) => {
      const { at, sections } = JSON.parse(event.data);
      heard = Date.now();
      ahead = Date.parse(at) - heard;
      if (lost) {
        lost = false;
        announce("connection", "done", "The supervisor answers again.", "");
      }
      for (const [name, html] of Object.entries(sections)) exchange(name, html);
      tick();
    });
    source.addEventListener("ended", () => {
      source.close();
      announce("connection", "refused", "The session has ended.", "Open the page again to sign in.");
    });
    source.addEventListener("error", () => {
      if (!lost) {
        lost = true;
        announce("connection", "refused", "The supervisor does not answer.", "Workers serve on without it where the kernel routes. This page connects again by itself.");
      }
      if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
      tick();
    });
  }

  // What was done and what has become of it, and apart from that, whether the supervisor answers: a
  // reload that cuts the stream must not take away its own outcome.
  function announce(of, kind, text, quiet, lines = []) {
    const notice = document.createElement("div");
    notice.className = `notice ${kind}`;
    notice.dataset.of = of;
    const main = notice.appendChild(document.createElement("p"));
    main.appendChild(document.createElement("b")).textContent = text;
    if (quiet) main.append(" ", Object.assign(document.createElement("span"), { className: "quiet", textContent: quiet }));
    for (const line of lines) {
      notice.appendChild(Object.assign(document.createElement("p"), { className: "quiet", textContent: line }));
    }
    said.querySelector(`[data-of=${of}]`)?.remove();
    said.append(notice);
  }

  async function send(form) {
    const fields = new URLSearchParams(new FormData(form));
    fields.set("form_token", body.dataset.token);
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      const answer = await fetch(form.action, { method: "POST", body: fields, headers: { Accept: "application/json" } });
      const found = await answer.json();
      const error = found.error;
      form.closest("[popover]").hidePopover();
      if (error) announce("action", "refused", error.message, error.hint);
      else announce("action", found.ok ? "done" : "refused", found.message, found.hint, [found.command, ...found.audit.map((each) => `audit ${each}`)]);
    } catch {
      form.closest("[popover]").hidePopover();
      announce("action", "refused", "The supervisor did not answer.", "The action may have been done all the same: see the page.");
    } finally {
      button.disabled = false;
    }
  }

  document.addEventListener("submit", (event) => {
    if (event.target.dataset.action) {
      event.preventDefault();
      send(event.target);
    }
  });
  document.addEventListener("change", (event) => {
    const command = event.target.closest("form")?.querySelector("[data-command]");
    if (!command || event.target.dataset.argument === undefined) return;
    command.dataset.base ??= command.textContent;
    const value = event.target.value;
    command.textContent = command.dataset.base + (value && ` ${/^[\w.:@%+=,/-]+$/.test(value) ? value : `'${value}'`}`);
  });
  document.addEventListener("click", (event) => {
    const from = event.target.dataset?.copy;
    if (from) navigator.clipboard.writeText(document.getElementById(from).innerText.trim()).then(() => put(event.target, "Copied"));
  });

  // Logs: the API's own stream, with a filter. Its lines take the place of the last ones.
  let log;

  function followLog(form, source) {
    const again = log?.source === source && log.filter === form.contains.value;
    log?.stream.close();
    if (log) delete document.getElementById(`log-${log.source}`)?.dataset.held;
    log = undefined;
    if (!again) {
      const query = new URLSearchParams({ follow: true, events: true, lines: 200 });
      if (form.contains.value) query.set("contains", form.contains.value);
      const box = document.getElementById(`log-${source}`);
      box.dataset.held = "";
      const lines = box.firstElementChild;
      lines.replaceChildren();
      const stream = new EventSource(`deploy/logs/${source}?${query}`);
      const add = (event) => {
        lines.append(logLine(event.data));
        if (lines.childElementCount > 500) lines.firstElementChild.remove();
      };
      stream.addEventListener("message", add);
      stream.addEventListener("gap", add);
      log = { source, filter: form.contains.value, stream };
    }
    for (const each of form.querySelectorAll("[data-source]")) each.setAttribute("aria-pressed", each.dataset.source === log?.source);
  }

  function logLine(text) {
    const line = document.createElement("p");
    try {
      const { ts, level, event, ...rest } = JSON.parse(text);
      if (!event) throw new Error("no line of ours");
      line.className = level;
      const time = Object.assign(document.createElement("time"), { dateTime: ts, textContent: clock(ts, true) });
      const fields = Object.entries(rest).map(([name, value]) => ` ${name}=${typeof value === "object" ? JSON.stringify(value) : value}`);
      line.append(time, ` ${event}${fields.join("")}`);
    } catch {
      line.textContent = text;
    }
    return line;
  }

  document.addEventListener("submit", (event) => {
    if (event.target.dataset.follow === undefined) return;
    event.preventDefault();
    followLog(event.target, event.submitter?.dataset.source ?? "supervisor");
  });

  // A time of day in the reader's zone; the axes of charts have whole minutes where they can.
  function clock(timestamp, seconds) {
    const then = new Date(timestamp);
    const fine = seconds || then.getSeconds() ? { second: "2-digit" } : {};
    return then.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...fine });
  }

  function enhance(root) {
    localTimes(root);
    for (const each of root.querySelectorAll("[data-clock]")) put(each, clock(each.dataset.clock, each.nodeName === "TIME"));
    for (const each of root.querySelectorAll("[data-follow]")) each.noValidate = true;
    for (const each of root.querySelectorAll("[data-copy]")) each.hidden = !navigator.clipboard;
  }

  follow();
  enhance(document);
  setInterval(tick, 1000);
})();
