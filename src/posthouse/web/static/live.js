"use strict";
// Fills the page of a test as its events come, and at the end puts the server's own result in their place.
// Whatever a tested host said is set as text, never as markup.
(function () {
  const live = document.getElementById("live");
  if (!live || !window.EventSource) return;
  const status = document.getElementById("status");
  const body = document.querySelector("#cases tbody");
  const dialogue = document.getElementById("dialogue");
  const ports = document.getElementById("ports");
  const marks = { tester: ">", host: "<", nobody: "-" };
  const MOST_CHARACTERS = 400000;
  let lines = [];
  let judged = 0;
  let drawing = false;

  function say(text) {
    if (status.textContent !== text) status.textContent = text;
  }
  function draw() {
    drawing = false;
    if (!lines.length) return;
    const isAtEnd = dialogue.scrollTop + dialogue.clientHeight >= dialogue.scrollHeight - 40;
    dialogue.append(lines.join(""));
    lines = [];
    while (dialogue.textContent.length > MOST_CHARACTERS && dialogue.firstChild) dialogue.firstChild.remove();
    if (isAtEnd) dialogue.scrollTop = dialogue.scrollHeight;
  }
  function printable(text) {
    return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (c) => "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0"));
  }
  function cell(row, kind, text, code) {
    const made = document.createElement(kind);
    if (kind === "th") made.scope = "row";
    if (code) {
      const inner = document.createElement("code");
      inner.textContent = text;
      made.append(inner);
    } else made.textContent = text;
    row.append(made);
    return made;
  }
  const verdictWords = {
    "relayed": "relayed", "accepted": "accepted, delivery not observed", "not-delivered": "accepted, not delivered",
    "refused": "refused", "local": "accepted for a local mailbox", "bounced": "a notice went to the third party",
    "not-tried": "not tried", "unknown": "no verdict",
  };
  function onCase(event) {
    const result = event.case;
    const id = "case-" + event.port + "-" + result.number;
    const row = document.createElement("tr");
    row.id = id;
    cell(row, "td", String(event.port));
    cell(row, "th", String(result.number));
    cell(row, "td", result.name);
    const verdict = cell(row, "td", "");
    const mark = document.createElement("span");
    mark.className = "mark " + result.verdict;
    mark.textContent = verdictWords[result.verdict] || result.verdict;
    verdict.append(mark);
    cell(row, "td", printable(result.reply || result.words || ""), true);
    const old = document.getElementById(id);
    if (old) old.replaceWith(row);
    else {
      body.append(row);
      judged += 1;
    }
    if (judged === 1 || judged % 20 === 0) say("Under way: " + judged + (judged === 1 ? " case" : " cases") + " judged");
  }
  const hear = {
    queued: (event) => say("Waiting: number " + event.place.place + " of " + event.place.waiting + " in the queue"),
    started: () => say("Under way"),
    port: (event) => ports.append("Port " + event.port + ": " + printable(event.words) + ". "),
    note: (event) => say(printable(event.words)),
    case: onCase,
    line: (event) => {
      lines.push(event.seconds.toFixed(2).padStart(7) + " " + event.session + " " + (marks[event.who] || "-") + " " + printable(event.text || "") + "\n");
      if (!drawing) {
        drawing = true;
        requestAnimationFrame(draw);
      }
    },
  };
  async function finish() {
    try {
      const answer = await fetch(live.dataset.page, { headers: { accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const result = page.getElementById("result");
      const verdict = page.getElementById("verdict");
      if (!result || !verdict) throw new Error("no result");
      document.title = page.title;
      say(verdict.textContent);
      status.className = "unseen"; // it is heard; what is to be seen stands below
      document.getElementById("result").replaceWith(document.adoptNode(result));
    } catch (error) {
      location.reload();
    }
  }
  const source = new EventSource(live.dataset.events);
  for (const kind of Object.keys(hear)) {
    source.addEventListener(kind, (message) => hear[kind](Object.assign({ seconds: 0, session: 0, who: "nobody", words: "" }, JSON.parse(message.data))));
  }
  for (const kind of ["done", "failed"]) {
    source.addEventListener(kind, () => {
      source.close();
      draw();
      finish();
    });
  }
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) say("The connection was lost; load the page again");
  });
})();
