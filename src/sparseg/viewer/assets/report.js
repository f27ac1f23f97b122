// The viewer of the report page. It only ever sets text, never markup: names come from users' files.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const readData = (id) => JSON.parse(element(id).textContent);
  const data = readData("report-data");
  const isServed = location.protocol === "http:";
  const unknown = [230, 230, 230];
  const layers = ["labels", "tokens", "confidence"];
  const shown = { number: null, order: [], full: false };
  const waiting = new Map();
  const names = new Map(data.labels.map((label) => [label.id, label.name]));
  let nv = null;
  let turn = 0;

  // Called by the scripts report/<case>.js of large reports.
  window.sparsegVolumes = (name, volumes) => {
    const entry = waiting.get(name);
    waiting.delete(name);
    if (entry) entry(volumes);
  };

  function loadScript(entry) {
    return new Promise((resolve, reject) => {
      waiting.set(entry.name, resolve);
      const script = document.createElement("script");
      script.src = entry.script.split("/").map(encodeURIComponent).join("/");
      script.onload = () => script.remove();
      script.onerror = () => reject(new Error(entry.script + " lies no longer beside this page"));
      document.head.append(script);
    });
  }

  const volumesOf = async (entry) =>
    entry.script ? loadScript(entry) : readData("volumes-" + entry.number);

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  async function unpacked(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const column = (colours, channel) => colours.map((colour) => colour[channel]);

  function discrete(ids, colours) {
    return {
      I: [0, ...ids], A: [0, ...ids.map(() => 255)],
      R: [0, ...column(colours, 0)], G: [0, ...column(colours, 1)], B: [0, ...column(colours, 2)],
    };
  }

  function dress(image, kind) {
    if (kind === "labels") {
      const used = data.labels.filter((label) => label.id > 0);
      image.setColormapLabel(discrete(used.map((label) => label.id), used.map((label) => label.colour || unknown)));
    } else if (kind === "tokens") {
      image.setColormapLabel(discrete(data.stages.map((_, number) => number + 1), data.stages));
    } else {
      image.cal_min = 0;
      image.cal_max = 255;
      image.colormap = kind === "confidence" ? "sparseg-low" : "gray";
    }
    return image;
  }

  function addLowColormap() {
    const limit = Math.round(255 * data.low.below);
    const [red, green, blue] = data.low.colour;
    nv.addColormap("sparseg-low", {
      I: [0, limit - 1, limit, 255], A: [255, 120, 0, 0],
      R: Array(4).fill(red), G: Array(4).fill(green), B: Array(4).fill(blue),
    });
  }

  const asImage = (bytes, name) => niivue.NVImage.loadFromFile({ file: new File([bytes], name), name });

  async function show(number, where) {
    const mine = ++turn;
    const entry = data.cases.find((one) => one.number === number);
    const volumes = await volumesOf(entry);
    const order = ["image", ...layers.filter((kind) => kind in volumes)];
    const images = [];
    for (const kind of order) images.push(dress(await asImage(bytesOf(volumes[kind]), kind + ".nii.gz"), kind));
    if (mine === turn) put(entry, order, images, where, false);
  }

  function put(entry, order, images, where, full) {
    for (const old of [...nv.volumes]) nv.removeVolume(old);
    for (const image of images) nv.addVolume(image);
    Object.assign(shown, { number: entry.number, order, full });
    element("v-case").value = String(entry.number);
    for (const radio of document.getElementsByName("v-layer")) {
      radio.disabled = radio.value !== "none" && !order.includes(radio.value);
      if (radio.disabled && radio.checked) document.querySelector("[name=v-layer][value=none]").checked = true;
    }
    element("v-full").hidden = !(isServed && !full && order.includes("labels") && entry.output.endsWith(".nii.gz"));
    listStructures();
    mix();
    goTo(where || middle(labelIndex() > 0 ? largest() : null));
    element("v-canvas").dataset.case = String(entry.number);
    element("v-canvas").dataset.resolution = full ? "full" : "preview";
  }

  const labelIndex = () => shown.order.indexOf("labels");

  function mix() {
    const layer = document.querySelector("[name=v-layer]:checked").value;
    const opacity = Number(element("v-opacity").value) / 100;
    shown.order.forEach((kind, index) => {
      if (index === 0) nv.setOpacity(0, element("v-image").checked ? 1 : 0);
      else nv.setOpacity(index, kind === layer ? opacity : 0);
    });
    element("v-legend").replaceChildren(...legendOf(layer).map(([colour, text]) => {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = "rgb(" + colour.join(",") + ")";
      item.append(swatch, text);
      return item;
    }));
  }

  function legendOf(layer) {
    if (layer === "labels") {
      return data.labels.filter((label) => sums.has(label.id)).map((label) => [label.colour || unknown, label.name]);
    }
    if (layer === "tokens") return data.stages.map((colour, number) => [colour, tokenWord(number + 1)]);
    return layer === "confidence" ? [[data.low.colour, "probability below " + data.low.below]] : [];
  }

  // Voxels of each id: how many, and one of them near the middle.
  function census() {
    const image = nv.volumes[labelIndex()];
    const [, width, height] = image.hdr.dims;
    const sums = new Map();
    image.img.forEach((id, index) => {
      if (!id) return;
      const sum = sums.get(id) || [0, 0, 0, 0];
      sum[0] += 1;
      sum[1] += index % width;
      sum[2] += Math.floor(index / width) % height;
      sum[3] += Math.floor(index / (width * height));
      sums.set(id, sum);
    });
    return sums;
  }

  let sums = new Map();

  function listStructures() {
    sums = labelIndex() > 0 ? census() : new Map();
    const options = [new Option("…", "")];
    for (const id of [...sums.keys()].sort((a, b) => a - b)) options.push(new Option(names.get(id) || String(id), String(id)));
    element("v-structure").replaceChildren(...options);
  }

  function largest() {
    const ids = [...sums.keys()];
    return ids.length ? ids.reduce((best, id) => (sums.get(id)[0] > sums.get(best)[0] ? id : best)) : null;
  }

  const world = (image, [i, j, k]) =>
    image.hdr.affine.slice(0, 3).map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);

  function middle(id) {
    const image = nv.volumes[id === null ? 0 : labelIndex()];
    const size = image.hdr.dims.slice(1, 4);
    if (id === null) return world(image, size.map((edge) => (edge - 1) / 2));
    const [count, ...sum] = sums.get(id);
    const mean = sum.map((value) => value / count);
    // The mean itself may lie outside: of a ring, or between two parts.
    let best = null, nearest = Infinity;
    image.img.forEach((value, index) => {
      if (value !== id) return;
      const voxel = [index % size[0], Math.floor(index / size[0]) % size[1], Math.floor(index / (size[0] * size[1]))];
      const distance = voxel.reduce((all, x, axis) => all + (x - mean[axis]) ** 2, 0);
      if (distance < nearest) { nearest = distance; best = voxel; }
    });
    return world(image, best);
  }

  function goTo(mm) {
    nv.scene.crosshairPos = nv.mm2frac([...mm], 0, true);
    nv.createOnLocationChange();
    nv.drawScene();
  }

  function describe(place) {
    const mm = [...place.mm].slice(0, 3);
    const parts = ["(" + mm.map((value) => value.toFixed(1)).join(", ") + ") mm RAS"];
    place.values.forEach(({ value }, index) => {
      const kind = shown.order[index];
      const id = Math.round(value);
      if (kind === "image") parts.push("grey " + id);
      if (kind === "labels") parts.push("label: " + (id ? names.get(id) || String(id) : "none"));
      if (kind === "tokens") parts.push("token: " + tokenWord(id));
      if (kind === "confidence") parts.push("confidence " + (value / 255).toFixed(2));
    });
    const where = element("v-where");
    where.textContent = parts.join("  ·  ");
    where.dataset.mm = mm.map((value) => value.toFixed(3)).join(",");
  }

  function tokenWord(id) {
    if (id === 0) return "not run";
    return id >= data.stages.length ? "kept to the end" : "pruned at stage " + id;
  }

  // Labels at full resolution need an image on their grid: NiiVue shows layers on the grid of the first one.
  async function showFull() {
    const entry = data.cases.find((one) => one.number === shown.number);
    const button = element("v-full");
    button.disabled = true;
    note("Loading " + entry.output + " …");
    try {
      const mine = ++turn;
      const reply = await fetch(encodeURIComponent(entry.output));
      if (!reply.ok) throw new Error(entry.output + ": " + reply.status);
      const labels = await unpacked(new Uint8Array(await reply.arrayBuffer()));
      const volumes = await volumesOf(entry);
      const grey = spread(await unpacked(bytesOf(volumes.image)), labels);
      const order = ["image", ...layers.filter((kind) => kind in volumes)];
      const images = [];
      for (const kind of order) {
        const bytes = kind === "image" ? grey : kind === "labels" ? labels : bytesOf(volumes[kind]);
        images.push(dress(await asImage(bytes, kind + (kind in { image: 0, labels: 0 } ? ".nii" : ".nii.gz")), kind));
      }
      if (mine === turn) {
        put(entry, order, images, where(), true);
        note("Labels at full resolution; image, tokens and confidence are thinned previews.");
      }
    } catch (error) {
      note("Not shown at full resolution: " + error.message);
    } finally {
      button.disabled = false;
    }
  }

  const where = () => element("v-where").dataset.mm.split(",").map(Number);
  const sizeOf = (bytes) => [1, 2, 3].map((axis) => new DataView(bytes.buffer).getInt16(40 + 2 * axis, true));

  // The thinned image on the grid of the labels, as an uncompressed NIfTI file: every voxel the nearest kept one.
  function spread(preview, labels) {
    const start = 352;
    const from = sizeOf(preview), to = sizeOf(labels);
    const steps = to.map((edge, axis) => Math.max(1, Math.ceil(edge / from[axis])));
    if (to.some((edge, axis) => Math.ceil(edge / steps[axis]) !== from[axis])) throw new Error("the label file is of another grid");
    const file = new Uint8Array(start + to[0] * to[1] * to[2]);
    file.set(labels.subarray(0, 348));
    const view = new DataView(file.buffer);
    view.setInt16(68, 0, true); // no intent
    view.setInt16(70, 2, true); // uint8
    view.setInt16(72, 8, true);
    view.setFloat32(108, start, true);
    view.setFloat32(112, 1, true);
    view.setFloat32(116, 0, true);
    const offset = new DataView(preview.buffer).getFloat32(108, true);
    const maps = to.map((edge, axis) => Int32Array.from({ length: edge }, (_, i) => Math.min(from[axis] - 1, Math.round(i / steps[axis]))));
    let place = start;
    for (let k = 0; k < to[2]; k += 1) {
      for (let j = 0; j < to[1]; j += 1) {
        const line = offset + (maps[2][k] * from[1] + maps[1][j]) * from[0];
        for (let i = 0; i < to[0]; i += 1) file[place++] = preview[line + maps[0][i]];
      }
    }
    return file;
  }

  const note = (text) => { element("v-note").textContent = text; };

  function setView(name) {
    const types = { planes: nv.sliceTypeMultiplanar, axial: nv.sliceTypeAxial, coronal: nv.sliceTypeCoronal, sagittal: nv.sliceTypeSagittal, solid: nv.sliceTypeRender };
    nv.setSliceType(types[name]);
  }

  function listen() {
    element("v-case").addEventListener("change", (event) => guard(show(Number(event.target.value))));
    element("v-view").addEventListener("change", (event) => setView(event.target.value));
    for (const id of ["v-image", "v-opacity", "v-layers"]) element(id).addEventListener("input", mix);
    element("v-structure").addEventListener("change", (event) => {
      if (event.target.value) goTo(middle(Number(event.target.value)));
    });
    element("v-mm").addEventListener("change", (event) => {
      const mm = event.target.value.trim().split(/[\s,;]+/).map(Number);
      if (mm.length === 3 && mm.every(Number.isFinite)) goTo(mm);
    });
    element("v-full").addEventListener("click", showFull);
    for (const button of document.querySelectorAll("button.show")) {
      button.addEventListener("click", () => {
        guard(show(Number(button.dataset.case)));
        element("viewer").scrollIntoView();
      });
    }
  }

  const guard = (promise) => promise.catch((error) => note("The viewer cannot show this case: " + error.message));

  // A link from the table opens the case that it leads to.
  function openTarget() {
    const target = location.hash && element(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  }

  async function start() {
    window.addEventListener("hashchange", openTarget);
    openTarget();
    element("viewer").hidden = false;
    if (!document.createElement("canvas").getContext("webgl2")) {
      for (const part of document.querySelectorAll("#viewer .controls, #viewer .stage, #viewer .where")) part.hidden = true;
      for (const button of document.querySelectorAll("button.show")) button.hidden = true;
      note("This browser has no WebGL 2, which the viewer needs; the pictures below show the same.");
      return;
    }
    element("v-case").replaceChildren(...data.cases.map((entry) => new Option(entry.name, String(entry.number))));
    nv = new niivue.Niivue({
      isRadiologicalConvention: true, dragAndDropEnabled: false, logLevel: "error", loadingText: "",
      show3Dcrosshair: true, showLegend: false, multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
      multiplanarPadPixels: 6, showAllOrientationMarkers: true, crosshairColor: [1, 0.25, 0.25, 0.9], crosshairWidth: 0.5,
      fontColor: [1, 0.88, 0.3, 1], backColor: [0, 0, 0, 1], isAntiAlias: true,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    });
    nv.onLocationChange = describe;
    await nv.attachToCanvas(element("v-canvas"), true);
    addLowColormap();
    listen();
    await show(data.cases[0].number);
  }

  guard(start());
})();
