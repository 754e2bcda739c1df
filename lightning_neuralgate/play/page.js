"use strict";

// The server escapes all text; this script only moves its HTML into the page.
const element = (id) => document.getElementById(id);
let picture = null;
let working = false; // buttons are not disabled meanwhile, so that they keep the focus

async function post(path, body) {
  const response = await fetch(path, { method: "POST", body });
  const content = await response.json().catch(() => ({ error: "the server's answer cannot be read" }));
  if (!response.ok) throw new Error(content.error);
  return content;
}

async function busy(text, work) {
  if (working) return;
  working = true;
  const status = element("status");
  status.className = "";
  status.textContent = text;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
    status.textContent = "";
  } catch (error) {
    status.className = "error";
    status.textContent = error.message;
  } finally {
    document.body.removeAttribute("aria-busy");
    working = false;
  }
}

function show(content) {
  picture = content.key;
  element("picture").innerHTML = content.html;
  element("answers").replaceChildren();
}

const draw = () => busy("Drawing ...", async () => show(await post("/draw", JSON.stringify({ subject: element("subject").value }))));

function ask() {
  const question = element("question").value;
  const body = JSON.stringify({ picture, question, form: element("form").value });
  element("status").scrollIntoView({ block: "nearest" });
  return busy("The models answer ...", async () => {
    element("answers").innerHTML = (await post("/ask", body)).html;
    element("answers").firstElementChild.scrollIntoView({ block: "nearest" });
  });
}

element("draw").addEventListener("click", draw);
element("subject").addEventListener("change", draw);
element("file").addEventListener("change", (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (file) busy("Opening ...", async () => show(await post(`/upload?name=${encodeURIComponent(file.name)}`, file)));
});
element("picture").addEventListener("click", (event) => {
  const question = event.target.dataset.question;
  if (question === undefined) return;
  element("question").value = question;
  ask();
});
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
element("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});
draw();
