// Shows one of the plugin's pages inside Airflow's own, in a shadow root so that neither styles the other. Which one
// the address of this script says (page.js?of=champion), and what in it is shown the part after # of Airflow's address.
// It is fetched anew each 20 seconds while its tab is looked at and nothing in it is unfolded or being written.
const { createElement, useEffect, useRef } = globalThis.React;
const own = new URL(import.meta.url);
const name = own.searchParams.get("of");
const address = new URL(name, own);
const more = name === "review" ? await import("./review.js") : null;

// What is after # may come from anywhere: it is one name, and never leads out of this page's addresses.
function chosen() {
  try {
    return encodeURIComponent(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return ""; // no address
  }
}

async function show(root, query) {
  const answer = await fetch(new URL(query, address), { credentials: "same-origin" });
  const text = await answer.text();
  if (query !== root.query) return;
  if (!answer.headers.get("content-type")?.startsWith("text/html")) {
    const why = { 403: "you may not see this", 404: "there is nothing of that name" }[answer.status];
    if (!root.querySelector("main")) root.textContent = `No page: ${why ?? `Airflow answered ${answer.status}`}.`;
    return;
  }
  const page = new DOMParser().parseFromString(text, "text/html");
  const style = new CSSStyleSheet();
  style.replaceSync(page.querySelector("style")?.textContent ?? "");
  root.adoptedStyleSheets = [style];
  root.replaceChildren(...page.body.childNodes);
  for (const link of root.querySelectorAll("a[data-page]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      root.query = link.dataset.page;
      show(root, root.query);
    });
  }
  for (const form of root.querySelectorAll("form[data-dag]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(form);
    });
  }
}

// Starts the form's DAG with its fields, as whoever is logged in: Airflow decides whether that person may.
async function send(form) {
  const conf = JSON.parse(form.dataset.conf ?? "{}");
  for (const field of form.elements) {
    if (!field.name || field.value === "") continue;
    conf[field.name] = field.type === "checkbox" ? field.checked : "number" in field.dataset ? Number(field.value) : field.value;
  }
  const answer = await fetch(new URL(`../api/v2/dags/${form.dataset.dag}/dagRuns`, address), {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ logical_date: null, conf }),
  });
  const said = await answer.json().catch(() => ({}));
  const output = form.querySelector("output");
  if (!answer.ok) {
    output.textContent = answer.status === 403 ? "You may not do this." : `Not started: ${JSON.stringify(said.detail ?? answer.status)}`;
    return;
  }
  const link = document.createElement("a");
  const airflow = new URL("..", address).pathname;
  link.href = `${airflow}dags/${form.dataset.dag}/runs/${encodeURIComponent(said.dag_run_id)}${form.dataset.tab ?? ""}`;
  link.textContent = "Started: see its run";
  output.replaceChildren(link);
  form.dispatchEvent(new Event("started", { bubbles: true }));
}

globalThis.AirflowPlugin = function Page() {
  const host = useRef(null);
  useEffect(() => {
    const root = host.current.shadowRoot ?? host.current.attachShadow({ mode: "open" });
    root.textContent = "Loading …";
    root.query = chosen() && `${name}/${chosen()}`;
    show(root, root.query);
    const timer = setInterval(() => {
      const busy = "details[open], form:focus-within, output:not(:empty), iframe.intake, [data-still]";
      if (!document.hidden && !root.querySelector(busy)) show(root, root.query);
    }, 20000);
    const end = more?.operate(root, (query) => show(root, query));
    return () => {
      clearInterval(timer);
      end?.();
    };
  }, []);
  return createElement("div", { ref: host, "data-testid": `xray-${name}` });
};
