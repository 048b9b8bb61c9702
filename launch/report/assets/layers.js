// What is logged per sublayer: norms against steps, depth weights, and the experts' load.

const placeName = place => place.sublayer === 'output' ? 'output' : place.layer + ' ' + place.sublayer;

const quantities = [
  {key: 'hidden_rms', name: 'hidden_rms', title: 'Hidden state', note: 'What the residual scheme hands to each sublayer.', unit: 'root mean square', isLog: true},
  {key: 'output_rms', name: 'output_rms', title: 'Sublayer output', note: 'What each sublayer adds.', unit: 'root mean square', isLog: true},
  {key: 'grad_rms', name: 'grad_rms', title: 'Gradient of the output', note: 'Of the loss, with respect to each sublayer\u2019s output.', unit: 'root mean square', isLog: true},
  {key: 'grad_norm', name: 'grad_norm', title: 'Gradient of the parameters', note: 'Of each sublayer, before clipping.', unit: 'L2 norm', isLog: true},
  {key: 'weight_norm', name: 'weight_norm', title: 'Parameters', note: 'Of each sublayer.', unit: 'L2 norm', isLog: true},
  {key: 'depth_entropy', name: 'depth_entropy', title: 'Entropy of the depth weights', note: 'Of each read, mean over tokens: 0 where it looks at one source only.', unit: 'nats', isLog: false},
  {key: 'depth_largest', name: 'depth_largest', title: 'Largest depth weight', note: 'Of each token, mean over tokens: 1 where the read is saturated.', unit: 'weight', isLog: false},
  {key: 'query_norm', name: 'query_norm', title: 'Depth query', note: 'Before the step.', unit: 'L2 norm', isLog: true},
  {key: 'query_update', name: 'query_update', title: 'Update of the depth query', note: 'What the step added to it.', unit: 'L2 norm', isLog: true},
  {key: 'max_logit', name: 'max_logit', title: 'Largest attention logit', note: 'Over the heads of multi-head latent attention.', unit: 'logit', isLog: true},
  {key: 'max_violation', name: 'max_violation', title: 'Imbalance of the experts', note: 'Load of the busiest expert over the mean, less one.', unit: 'share of the mean', isLog: false},
  {key: 'router_entropy', name: 'router_entropy', title: 'Router entropy', note: 'Of the normalised scores, mean over tokens.', unit: 'nats', isLog: false},
  {key: 'balance_loss', name: 'balance_loss', title: 'Balance loss per layer', note: 'Without its weight.', unit: 'loss', isLog: false},
  {key: 'dead_experts', name: 'dead_experts', title: 'Experts without a token', unit: 'experts', isLog: false},
];

// Of one run: the rows that have the quantity in some step.
function stepMap(run, quantity) {
  const map = run.layers && run.layers.quantities[quantity.key];
  if (!map) return null;
  const kept = map.map((_, r) => r).filter(r => map[r].some(isNumber));
  return {title: quantity.title, name: quantity.name, unit: quantity.unit, isLog: quantity.isLog && kept.some(r => map[r].some(value => value > 0)),
          values: kept.map(r => map[r]), rows: kept.map(r => placeName(run.layers.rows[r])), columns: run.layers.steps.map(whole),
          rowLabel: 'sublayer', columnLabel: 'optimizer step', columnName: 'step'};
}

function mapFigure(runs, quantity) {
  const maps = runs.map(run => stepMap(run, quantity));
  if (!maps.some(Boolean)) return null;
  const host = figure(quantity.title, quantity.note);
  host.dataset.plot = 'map-' + quantity.key;
  const usable = maps.filter(Boolean), isLog = usable.every(map => map.isLog);
  const domain = extent(usable.flatMap(map => map.values.map(row => isLog ? row.filter(value => value > 0) : row)));
  const panels = el('div', {class: runs.length > 1 ? 'panels' : null});
  maps.forEach((map, i) => {
    const panel = el('div', {class: 'panel'}, runs.length > 1 ? el('h4', {}, runs[i].label) : null);
    panels.append(panel);
    host.append(panels);
    if (map) drawPanel(panel, {...map, isLog, domain});
    else panel.append(el('p', {class: 'note'}, 'Not logged by this run.'));
  });
  if (runs.length > 1) host.classList.add('wide');
  host.append(tableBehind('Table of ' + uncapital(quantity.title), () =>
    el('div', {}, maps.map((map, i) => map ? el('div', {}, runs.length > 1 ? el('h4', {}, runs[i].label) : null, mapTable(map)) : null))));
  return host;
}

// Drawn when it has its place on the page, whose width it needs.
const waiting = [];
function drawPanel(panel, map) {
  waiting.push(() => heatMap(panel, () => map));
}
function drawWaiting() {
  for (const draw of waiting.splice(0)) draw();
}

function layersSection(runs) {
  const any = runs.find(run => run.layers);
  if (!any) {
    return fill(section('layers', 'Norms by layer and step', 'No sublayer was logged.'), {}, [el('p', {class: 'note'}, el('code', {}, 'logging.layer_stats_interval'), ' above 0 writes layers.jsonl.')]);
  }
  const logged = runs.map(run => run.layers ? run.layers.logged : 0), shown = runs.map(run => run.layers ? run.layers.steps.length : 0);
  const isThinned = logged.some((n, i) => n > shown[i]);
  const place = section('layers', 'Norms by layer and step', 'Depth grows downwards: each layer\u2019s mixer, then its MLP. The bar beside a map says what its colours mean; several runs share one.',
                        ...(isThinned ? [shown.map((n, i) => whole(n) + ' of ' + whole(logged[i])).join(', ') + ' logged steps are shown, evenly spread.'] : []));
  place.append(el('div', {class: 'figures'}, quantities.map(quantity => mapFigure(runs, quantity))));
  return place;
}

// ---- Maps of one step, which a slider chooses ----

// make(index) gives the map of the step at `index`.
function slidingMap(host, steps, make, label) {
  let index = steps.length - 1;
  const said = el('output', {}, whole(steps[index]));
  const slider = el('input', {type: 'range', min: 0, max: steps.length - 1, value: index, step: 1, 'aria-label': label + ', logged step', 'aria-valuetext': 'step ' + steps[index]});
  const plot = el('div'), numbers = el('div');
  host.append(el('label', {class: 'slider'}, 'Step ', slider, ' ', said), plot, tableBehind('Table of this step', () => numbers));
  waiting.push(() => {
    const redraw = heatMap(plot, () => make(index));
    const write = () => {
      const map = make(index);
      numbers.replaceChildren(table([{title: capital(map.rowLabel)}, ...map.columns.map(title => ({title}))], map.rows.map((title, r) => [title, ...map.values[r]])));
    };
    write();
    slider.addEventListener('input', () => {
      index = Number(slider.value);
      said.textContent = whole(steps[index]);
      slider.setAttribute('aria-valuetext', 'step ' + steps[index]);
      redraw();
      write();
    });
  });
}

function depthFigure(run, many) {
  const depth = run.layers && run.layers.depth;
  if (!depth) return null;
  const host = figure(many ? run.label : 'Where each sublayer reads');
  if (depth.sources.length > 14) host.classList.add('wide');
  host.dataset.plot = 'depth-weights';
  const domain = [0, extent(depth.weights.flat().map(row => row || []))[1]];
  slidingMap(host, depth.steps, index => ({
    title: 'Depth weights at step ' + depth.steps[index], name: 'weight', unit: 'mean softmax weight', domain, isLog: false, skipEmpty: true, tilt: true, square: true,
    rows: depth.reads.map(placeName), columns: depth.sources, rowLabel: 'read before', columnLabel: 'source', columnName: 'source',
    values: depth.reads.map((_, r) => {
      const row = new Array(depth.sources.length).fill(null);
      depth.columns[r].forEach((column, k) => { row[column] = depth.weights[index][r] ? depth.weights[index][r][k] : null; });
      return row;
    })}), 'Depth weights');
  return host;
}

function cosineFigure(run, many) {
  const cosines = run.layers && run.layers.cosines;
  if (!cosines) return null;
  const host = figure((many ? run.label + ': how' : 'How') + ' alike the sources are', 'Mean cosine over tokens: what is alike to the keys cannot be told apart by a query.');
  if (cosines.sources.length > 14) host.classList.add('wide');
  host.dataset.plot = 'source-cosines';
  slidingMap(host, cosines.steps, index => {
    const n = cosines.sources.length, values = Array.from({length: n}, (_, i) => Array.from({length: n}, (_, j) => i === j ? 1 : null));
    let pair = 0;
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++, pair++) values[i][j] = values[j][i] = cosines.cosines[index] ? cosines.cosines[index][pair] : null;
    return {title: 'Cosines at step ' + cosines.steps[index], name: 'cosine', unit: 'mean cosine', domain: [-1, 1], isLog: false, tilt: true, square: true,
            rows: cosines.sources, columns: cosines.sources, rowLabel: 'source', columnLabel: 'source', columnName: 'source', values};
  }, 'Cosines of sources');
  return host;
}

function depthSection(runs) {
  const figures = runs.flatMap(run => [depthFigure(run, runs.length > 1), cosineFigure(run, runs.length > 1)]);
  if (!figures.some(Boolean)) return null;
  return fill(section('depth', 'Depth weights', 'The mean softmax weight that each read puts on its sources: the embedding, the finished blocks, and the open sum where the read sees one. Each row sums to 1.'),
              {}, [el('div', {class: 'figures'}, figures)]);
}

function expertFigure(run, many) {
  const experts = run.layers && run.layers.experts;
  if (!experts) return null;
  const host = figure(many ? run.label : 'Load per expert');
  host.dataset.plot = 'expert-load';
  const domain = [0, Math.max(1, extent(experts.load.flat().map(row => row || []))[1])];
  const numExperts = Math.max(...experts.load.flat().map(row => row ? row.length : 0));
  if (numExperts > 24) host.classList.add('wide');
  slidingMap(host, experts.steps, index => ({
    title: 'Load per expert at step ' + experts.steps[index], name: 'load', unit: 'tokens over the mean', domain, isLog: false, square: true,
    rows: experts.layers.map(layer => 'layer ' + layer), columns: Array.from({length: numExperts}, (_, e) => String(e)), rowLabel: 'layer',
    columnLabel: 'expert', columnName: 'expert', values: experts.load[index].map(row => row || new Array(numExperts).fill(null))}), 'Load per expert');
  return host;
}

function expertSection(runs) {
  const figures = runs.map(run => expertFigure(run, runs.length > 1));
  if (!figures.some(Boolean)) return null;
  return fill(section('experts', 'Router load', 'Tokens that each expert was given in the step, over the mean of its layer: 1 is balanced, 0 is an expert without work.'),
              {}, [el('div', {class: 'figures'}, figures)]);
}
