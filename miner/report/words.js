// What the job's words mean, in a sentence. A word that is not here is shown alone.

const GRADES = ["0 unrelated", "1 same topic", "2 main point", "3 full answer"];
const GRADE_HELP = [
  "has nothing to do with the query",
  "is on the same topic, but does not answer",
  "answers the main point",
  "answers the query fully",
];

const REASONS = {
  positive: "It is a positive of this query.",
  positive_copy: "Its text is that of a positive.",
  query_copy: "Its text is that of the query.",
  copy_of_better: "A candidate with the same text stands higher.",
  near_positive: "It is nearly the text of a positive.",
  near_better: "A candidate with nearly the same text stands higher.",
  answer: "It holds the answer of the query.",
  sibling: "It stands beside a positive in the same document.",
  positive_of_twin: "It is a positive of another query that asks the same.",
  rank_min: "It ranks above the window of a retriever: too near to be trusted.",
  rank_max: "It ranks below the window of every retriever that found it: too far to be hard.",
  no_teacher_score: "The teacher did not score it, and the margin is the teacher's.",
  score_max: "Its score is above score_max.",
  score_min: "Its score is below score_min.",
  margin_absolute: "Its score, or the mean of that and its cosine with the nearest positive, is too close to the lowest positive (absolute margin).",
  margin_relative: "Its score, or the mean of that and its cosine with the nearest positive, is too close to the lowest positive (relative margin).",
  max_uses: "The passage is a negative of enough other queries already.",
  quota: "Its retriever had given its share.",
  not_sampled: "Nothing spoke against it; it was not drawn into the pool.",
  surplus: "It would do as a negative; the query had enough before it.",
  judged_relevant: "The judge found it relevant: a false negative.",
  judged_unsure: "The judge was not sure.",
  copy_of_positive: "The generator wrote a copy of the positive.",
  copy_of_corpus: "The generator wrote a copy of a passage of the corpus.",
  copy_of_synthetic: "The generator wrote the same as for another request.",
  refusal: "The generator refused instead of writing a passage.",
  meta_talk: "The generator wrote about its task instead of a passage.",
  script_drift: "The generator wrote in another script than the positive's.",
  length: "The written passage is far from the length asked for.",
  facet_unchanged: "The written passage did not change what it had to change.",
  too_easy: "The written passage scores below what mining found.",
  style_audit: "Written passages can be told from mined ones by their style.",
  not_chosen: "Another sample for the same demand was taken.",
  template: "Too many written passages begin like this one.",
  too_few_negatives: "The query has too few negatives to be exported.",
  too_many_false_negatives: "Too many candidates were found relevant; the query was set aside.",
};
const STATUSES = {
  refused: "refused to answer",
  truncated: "gave an answer that was cut off",
  unparsable: "gave an answer that could not be read",
  missing: "gave no answer",
  failed: "failed",
};

// A sentence on a reason; "" where there is nothing to add to the word itself.
function explain(reason) {
  if (Object.hasOwn(REASONS, reason)) return REASONS[reason];
  if (reason.startsWith("near_duplicate_of_")) return "The written passage is nearly a copy of another.";
  for (const [prefix, who] of [
    ["judge_", "The judge "],
    ["generator_", "The generator "],
  ]) {
    const status = reason.slice(prefix.length);
    if (reason.startsWith(prefix) && Object.hasOwn(STATUSES, status)) return `${who}${STATUSES[status]}.`;
  }
  return "";
}

function whyKept(slot) {
  return slot ? `Kept as hard negative ${slot} of this query.` : "Kept as a hard negative.";
}
