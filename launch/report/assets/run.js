// The page of one run, or of several.

const schemes = {standard: 'standard', block_attnres: 'Block AttnRes', full_attnres: 'Full AttnRes'};

// [[what, in words]] of a run's summary.
function facts(run) {
  const s = run.summary;
  const experts = s.num_experts > 0 ? s.experts_per_token + ' of ' + s.num_experts + ' per token' : 'none (dense)';
  let layout = s.ranks ? whole(s.ranks) + (s.ranks === 1 ? ' rank' : ' ranks') : 'not known';
  if (s.pipeline > 1)
    layout += ': pipeline ' + s.pipeline + (s.virtual_stages > 1 ? ' \u00d7 ' + s.virtual_stages + ' chunks' : '') + ', ' + s.schedule;
  if (s.data > 1) layout += ', data-parallel ' + s.data;
  if (s.expert > 1) layout += ', expert-parallel ' + s.expert;
  return [
    ['State', s.state === 'done' ? 'done, ' + whole(s.step) + ' steps' : s.state],
    ['Tokens', count(s.tokens) + (s.tokens < s.planned_tokens ? ' of ' + count(s.planned_tokens) : '')],
    ['Parameters', count(s.parameters) + (s.active_parameters !== s.parameters ? ', ' + count(s.active_parameters) + ' active' : '')],
    ['Model', s.layers + ' layers, hidden size ' + whole(s.hidden_size)],
    ['Residual', (schemes[s.residual] || s.residual) +
                 (s.block_size ? ', ' + s.block_size + (s.block_size === 1 ? ' layer' : ' layers') + ' per block' : '')],
    ['Experts', experts],
    ['Batch', whole(s.global_batch_size) + ' \u00d7 ' + whole(s.seq_len) + ' tokens' + (s.stages.length ? ' at first' : '')],
    ['Stages', s.stages.length ? whole(s.stages.length + 1) + ' so far, in the table of stages' : 'one'],
    ['Precision', s.precision + ', ' + s.optimizer],
    ['Layout', layout],
    ['Compute', flop(s.flops)],
    ['Time in steps', seconds(s.seconds_in_steps) + (run.starts.length > 1 ? ', ' + run.starts.length + ' starts' : '')],
    ['Seed', String(s.seed)],
  ];
}

function headerOf(runs) {
  const head = el('header', {}, el('h1', {}, runs.map(run => run.label).join(', ')));
  if (runs.length === 1) {
    head.append(el('p', {class: 'folder'}, runs[0].folder),
                el('dl', {class: 'facts'}, facts(runs[0]).map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value)))));
    return head;
  }
  const all = runs.map(facts);
  head.append(table([{title: ''}, ...runs.map(run => ({title: run.label}))],
                    [['Folder', ...runs.map(run => run.folder)], ...all[0].map(([name], i) => [name, ...all.map(list => list[i][1])])],
                    'The runs'));
  return head;
}

function configurationSection(runs) {
  const place = section('configuration', 'Configuration', 'As resolved: every key, written out.');
  for (const run of runs)
    place.append(el('details', {class: 'configuration'}, el('summary', {}, 'config.yaml' + (runs.length > 1 ? ' of ' + run.label : '')),
                    scrolling(el('pre', {tabindex: 0}, run.config))));
  return place;
}

// Runs are told apart by name, and where names are the same by folder.
function nameRuns(runs) {
  for (const run of runs) {
    const isUnique = runs.filter(other => other.name === run.name).length === 1;
    run.label = isUnique ? run.name : run.name + ' (' + run.folder + ')';
  }
}

function runsPage(page, content) {
  nameRuns(content.runs);
  const runs = content.runs;
  return [headerOf(runs), content.comparison ? comparisonSection(runs, content.comparison) : null, curvesSection(runs), layersSection(runs),
          depthSection(runs), expertSection(runs), pipelineSection(runs), communicationSection(runs), configurationSection(runs)];
}
