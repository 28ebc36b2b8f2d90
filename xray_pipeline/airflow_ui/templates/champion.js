// Shows the page "champion" inside Airflow's own, in a shadow root so that neither styles the other.
// It is fetched anew each 20 seconds while its tab is looked at and none of its reasons is unfolded.
const { createElement, useEffect, useRef } = globalThis.React;
const address = new URL("champion", import.meta.url);

async function show(root, query) {
  const answer = await fetch(new URL(query, address), { credentials: "same-origin" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
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
}

globalThis.AirflowPlugin = function Champion() {
  const host = useRef(null);
  useEffect(() => {
    const root = host.current.shadowRoot ?? host.current.attachShadow({ mode: "open" });
    root.query = "";
    show(root, "");
    const timer = setInterval(() => {
      if (!document.hidden && !root.querySelector("details[open]")) show(root, root.query);
    }, 20000);
    return () => clearInterval(timer);
  }, []);
  return createElement("div", { ref: host, "data-testid": "xray-champion" });
};
