// What the page Review does beyond its links: keys, and looking again until what was asked for is done.
const KEYS = { ArrowRight: "[rel=next]", n: "[rel=next]", ArrowLeft: "[rel=prev]", p: "[rel=prev]", Escape: "[data-key=Escape]" };

// Listens as long as the page is shown; `go` shows an address of it. Returns what ends that.
export function operate(root, go) {
  const press = (event) => {
    const at = event.composedPath()[0];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (at instanceof Element && at.matches("input:not([type=checkbox]), select, textarea")) {
      if (event.key === "Escape") at.blur();
      return;
    }
    const link = KEYS[event.key] && root.querySelector(KEYS[event.key]);
    const form = root.querySelector(`form[data-key="${CSS.escape(event.key)}"]`);
    const zoom = event.key === "z" && root.querySelector(".zoom");
    if (link) link.click();
    else if (zoom) zoom.click();
    else if (form) form.querySelector("input").select(); // nothing is sent by one key, which may be a slip
    else return;
    event.preventDefault();
  };
  const started = (event) => {
    const next = event.target.dataset.key === "a" && root.querySelector("[rel=next]");
    if (next) next.click();
    else go(root.query);
  };
  const timer = setInterval(() => {
    if (!document.hidden && root.querySelector(".asked") && !root.querySelector("form:focus-within")) go(root.query);
  }, 3000);
  document.addEventListener("keydown", press);
  root.addEventListener("started", started);
  return () => {
    clearInterval(timer);
    document.removeEventListener("keydown", press);
  };
}
