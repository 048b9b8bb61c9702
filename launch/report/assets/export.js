// What a plot can be taken away as: its numbers as CSV, its picture as PNG. Both are made in the page.

// ---- CSV (RFC 4180): a line of names, with units in brackets, then the rows ----

function csvField(cell) {
  if (cell === null || cell === undefined) return '';
  const text = typeof cell === 'number' ? (isFinite(cell) ? String(cell) : 'nan') : String(cell);
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}
const csvText = ({columns, rows}) => [columns, ...rows].map(row => row.map(csvField).join(',') + '\n').join('');

const withUnit = (name, unit) => unit ? name + ' [' + unit + ']' : name;
const fileName = parts => parts.join(' ').replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^[-.]+|-+$/g, '').slice(0, 120) || 'plot';

function download(name, blob) {
  const link = el('a', {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- PNG ----

const drawn = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-dasharray', 'stroke-opacity', 'stroke-linejoin', 'opacity',
               'visibility', 'font-family', 'font-size', 'font-weight'];

// A copy that looks the same without the page's styles.
function standalone(source) {
  const copy = source.cloneNode(false);
  copy.removeAttribute('class');
  copy.removeAttribute('style');
  const style = getComputedStyle(source);
  for (const name of drawn) copy.setAttribute(name, style.getPropertyValue(name));
  for (const child of source.childNodes) copy.append(child.nodeType === Node.TEXT_NODE ? child.cloneNode() : standalone(child));
  return copy;
}

// A figure's title, legend and drawings, one below the other.
function pictureOf(host) {
  const colourOf = name => getComputedStyle(document.documentElement).getPropertyValue(name);
  const frames = [...host.querySelectorAll('.plot')].filter(frame => frame.firstElementChild);
  const width = Math.max(...frames.map(frame => frame.firstElementChild.width.baseVal.value)), margin = 12;
  const parts = svg('g', {});
  let y = margin;
  const look = {'font-family': getComputedStyle(document.body).fontFamily, fill: colourOf('--ink')};
  const write = (text, size, weight, x = 0) => svg('text', {...look, x, y: y + size, 'font-size': size, 'font-weight': weight}, text);
  parts.append(write(host.querySelector('h3').textContent, 16, 650));
  y += 26;
  let x = 0;
  const said = new Set();
  const signs = host.querySelector('.event') ? [...document.querySelectorAll('.legend.events li')] : [];
  for (const item of [...host.querySelectorAll('.legend li'), ...signs]) {
    if (said.has(item.textContent)) continue;
    said.add(item.textContent);
    const box = item.getBoundingClientRect();
    if (x > 0 && x + box.width > width) {
      x = 0;
      y += 20;
    }
    const sample = item.querySelector('svg');
    if (sample) parts.append(fill(standalone(sample), {x, y: y + 4}, []));
    const key = item.querySelector('.key');
    if (key) parts.append(svg('rect', {x, y: y + 3, width: 22, height: 12, fill: getComputedStyle(key).backgroundColor}));
    parts.append(write(item.lastElementChild.textContent, 13, 400, x + 36));
    x += box.width + 22;
  }
  if (x > 0) y += 26;
  for (const frame of frames) {
    const name = frame.closest('.panel') && frame.closest('.panel').querySelector('h4');
    if (name) {
      parts.append(write(name.textContent, 13, 600));
      y += 20;
    }
    const drawing = frame.firstElementChild;
    parts.append(fill(standalone(drawing), {x: 0, y}, []));
    y += drawing.height.baseVal.value + margin;
  }
  parts.setAttribute('transform', 'translate(' + margin + ',0)');
  const ground = svg('rect', {width: '100%', height: '100%', fill: colourOf('--ground')});
  return svg('svg', {width: width + 2 * margin, height: y}, ground, parts);
}

const pictureScale = 2;  // pixels of the picture to one of the page

async function toPng(host) {
  const picture = pictureOf(host), image = new Image();
  image.src = 'data:image/svg+xml;charset=utf-8,' + encodeURIComponent(new XMLSerializer().serializeToString(picture));
  await image.decode();
  const canvas = el('canvas', {width: Math.round(pictureScale * picture.getAttribute('width')),
                               height: Math.round(pictureScale * picture.getAttribute('height'))});
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, fail) =>
    canvas.toBlob(blob => blob ? done(blob) : fail(new Error('this picture is too large for the browser')), 'image/png'));
}

// ---- The buttons beside a plot's title ----

function tool(label, title, action) {
  const button = el('button', {type: 'button', title, 'aria-label': title}, label);
  button.addEventListener('click', action);
  return button;
}

// csv() gives {columns, rows}; names: of the runs and of the plot, for the files.
function exportTools(host, names, csv) {
  const name = fileName(names), what = host.querySelector('h3').textContent;
  const savePicture = async () => download(name + '.png', await toPng(host));
  const saveNumbers = () => download(name + '.csv', new Blob([csvText(csv())], {type: 'text/csv;charset=utf-8'}));
  toolsOf(host).append(tool('PNG', 'Save the picture of \u201c' + what + '\u201d as it is shown, at twice its size', savePicture),
                       tool('CSV', 'Save all numbers of \u201c' + what + '\u201d that are in this page', saveNumbers));
}

function toolsOf(host) {
  const caption = host.querySelector('figcaption');
  let place = caption.querySelector('.tools');
  if (!place) {
    place = el('div', {class: 'tools', role: 'group', 'aria-label': 'Tools of the plot'});
    caption.prepend(place);
  }
  return place;
}
