// The drop zone: sends files to /files, lists them, and tells the page which one is chosen.
const zone = element.querySelector(".zone");
const list = element.querySelector(".chosen");
const status = element.querySelector(".status");
const files = []; // {token, name}, in the order in which they came
const address = (path) => new URL(path, document.baseURI);

const choose = (button, what) => {
  for (const other of element.querySelectorAll("[aria-pressed]"))
    other.setAttribute("aria-pressed", other === button);
  trigger("select", { ...what, files: files.map(({ token, name }) => ({ token, name })) });
};

const remove = (file, row) => {
  fetch(address("files/" + file.token), { method: "DELETE", keepalive: true });
  files.splice(files.indexOf(file), 1);
  const chosen = row.querySelector('[aria-pressed="true"]');
  row.remove();
  const next = list.querySelector(".file");
  if (chosen && next) next.click();
  else if (chosen) choose(null, {});
};

const show = (file) => {
  const row = document.createElement("div");
  const open = document.createElement("button");
  const cross = document.createElement("button");
  row.className = "row";
  open.type = cross.type = "button";
  open.className = "file";
  open.textContent = file.name;
  open.setAttribute("aria-pressed", "false");
  open.addEventListener("click", () => choose(open, { token: file.token, name: file.name }));
  cross.className = "remove";
  cross.textContent = "×";
  cross.setAttribute("aria-label", "remove " + file.name);
  cross.addEventListener("click", () => remove(file, row));
  row.append(open, cross);
  list.append(row);
  return open;
};

const bring = async (chosen) => {
  const buttons = [];
  const failed = [];
  for (const [number, file] of [...chosen].entries()) {
    status.textContent = `sending ${file.name} (${number + 1} of ${chosen.length})`;
    try {
      const answer = await fetch(address("files?name=" + encodeURIComponent(file.name)), {
        method: "POST",
        body: file,
        headers: { "Content-Type": "application/octet-stream" },
      });
      const found = await answer.json();
      if (found.error) throw new Error(`${found.error.found}; expected ${found.error.expected}`);
      const kept = { token: found.token, name: file.name };
      files.push(kept);
      buttons.push(show(kept));
    } catch (error) {
      failed.push(`${file.name}: ${error.message}`);
    }
  }
  status.textContent = failed.join("; ");
  if (buttons.length) buttons[0].click();
};

element.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  const chosen = [...event.target.files];
  event.target.value = ""; // the same file can be chosen again
  if (chosen.length) bring(chosen);
});
element.addEventListener("click", (event) => {
  const sample = event.target.closest(".sample");
  if (sample) choose(sample, { sample: sample.dataset.sample });
});
for (const name of ["dragenter", "dragover"])
  zone.addEventListener(name, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
for (const name of ["dragleave", "drop"])
  zone.addEventListener(name, () => zone.classList.remove("over"));
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) bring([...event.dataTransfer.files]);
});
window.addEventListener("pagehide", (event) => {
  if (event.persisted) return; // the visitor may come back to this very page
  for (const file of files)
    fetch(address("files/" + file.token), { method: "DELETE", keepalive: true });
});
zone.dataset.ready = "";
