"""A description for each of the 57 subjects of MMLU, the domains of synthetic conversations."""

from __future__ import annotations

from crossroads.prompts.preferences.policies import Policy

DESCRIPTIONS = {
    "abstract_algebra": "groups, rings, fields, homomorphisms and other algebraic structures",
    "anatomy": "the structure of the human body: bones, muscles, nerves and organs",
    "astronomy": "planets, stars, galaxies, telescopes and the universe",
    "business_ethics": "ethical conduct of companies, corporate responsibility and governance",
    "clinical_knowledge": "bedside medicine: examining, nursing and treating patients",
    "college_biology": "university biology: cells, evolution, ecology and molecular genetics",
    "college_chemistry": "university chemistry: spectroscopy, bonding, thermodynamics, reactions",
    "college_computer_science": "algorithms, complexity, compilers, operating systems",
    "college_mathematics": "university calculus, linear algebra, topology and analysis",
    "college_medicine": "medical school science: biochemistry, physiology and disease",
    "college_physics": "university physics: quantum mechanics, optics, relativity, circuits",
    "computer_security": "attacks, exploits, encryption, malware and protecting computers",
    "conceptual_physics": "everyday physics explained in words, without calculation",
    "econometrics": "regression models of economic data, estimators and time series",
    "electrical_engineering": "circuits, motors, signals, transistors and power systems",
    "elementary_mathematics": "school arithmetic: sums, fractions and simple word problems",
    "formal_logic": "symbolic logic: translating sentences, truth tables and proofs",
    "global_facts": "statistics about the world: population, surveys, poverty, spending",
    "high_school_biology": "school biology: plants, animals, cells, heredity and ecosystems",
    "high_school_chemistry": "school chemistry: moles, acids, gases, compounds and reactions",
    "high_school_computer_science": "programming basics: code fragments, loops, data, networks",
    "high_school_european_history": "the history of Europe, with passages from its sources",
    "high_school_geography": "human geography: cities, migration, farming, borders and maps",
    "high_school_government_and_politics": "American government: Congress, courts and elections",
    "high_school_macroeconomics": "inflation, unemployment, money supply and national output",
    "high_school_mathematics": "school algebra, geometry, probability and functions",
    "high_school_microeconomics": "supply, demand, prices, firms, costs and competition",
    "high_school_physics": "school physics problems: forces, energy, waves and electricity",
    "high_school_psychology": "introductory psychology: learning, memory, perception, behavior",
    "high_school_statistics": "samples, distributions, confidence intervals and tests",
    "high_school_us_history": "the history of the United States, with passages from its sources",
    "high_school_world_history": "empires, trade and revolutions around the world over time",
    "human_aging": "growing old: elderly people, longevity, retirement and dementia",
    "human_sexuality": "sex, sexual health, gender, relationships and reproduction",
    "international_law": "treaties, states, human rights and international courts",
    "jurisprudence": "the philosophy of law: theories of justice, rules and legal systems",
    "logical_fallacies": "faulty arguments and the names of reasoning errors",
    "machine_learning": "neural networks, classifiers, training and model evaluation",
    "management": "organisations, leadership, motivation, teams and structure of firms",
    "marketing": "brands, customers, advertising, pricing and market segments",
    "medical_genetics": "inherited disorders, chromosomes, mutations and genetic testing",
    "miscellaneous": "general trivia: films, sport, food, music, words and celebrities",
    "moral_disputes": "debates in applied ethics: abortion, animals, punishment, drugs",
    "moral_scenarios": "judging whether a described action of a person is clearly wrong",
    "nutrition": "food, diet, vitamins, metabolism and nutritional health",
    "philosophy": "philosophers, their arguments, knowledge, mind and ethics",
    "prehistory": "early humans, fossils, stone tools, archaeology and ancient cultures",
    "professional_accounting": "financial statements, audits, taxes and bookkeeping",
    "professional_law": "legal cases about contracts, crimes, property, evidence, lawsuits",
    "professional_medicine": "patient cases with history, examination, laboratory, diagnosis",
    "professional_psychology": "therapy, psychological tests, counselling and mental disorders",
    "public_relations": "media relations, press, publicity, crises and communication",
    "security_studies": "war, terrorism, weapons, military power and national security",
    "sociology": "society, class, inequality, families, groups and institutions",
    "us_foreign_policy": "American diplomacy, presidents abroad, alliances and the Cold War",
    "virology": "viruses, infection, vaccines and epidemics",
    "world_religions": "beliefs, rituals, scriptures and history of religions",
}


def subject_policy(subject: str) -> Policy:
    """Return the policy of one subject."""
    return Policy(name=subject, description=DESCRIPTIONS[subject])


# Subjects whose questions cannot be told apart by a description: MMLU's own 17 subcategories.
_FAMILIES = (
    "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics "
    "high_school_statistics",
    "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition "
    "professional_medicine virology",
    "astronomy college_physics conceptual_physics high_school_physics",
    "business_ethics marketing management",
    "college_biology high_school_biology",
    "college_chemistry high_school_chemistry",
    "college_computer_science computer_security high_school_computer_science machine_learning",
    "econometrics high_school_macroeconomics high_school_microeconomics",
    "electrical_engineering",
    "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy world_religions",
    "global_facts miscellaneous professional_accounting",
    "high_school_european_history high_school_us_history high_school_world_history prehistory",
    "high_school_geography",
    "high_school_government_and_politics public_relations security_studies us_foreign_policy",
    "high_school_psychology professional_psychology",
    "human_sexuality sociology",
    "international_law jurisprudence professional_law",
)
FAMILY = {subject: number for number, group in enumerate(_FAMILIES) for subject in group.split()}
# A catch-all covers what "other" means; synthetic conversations leave it out.
DOMAINS = tuple(subject for subject in DESCRIPTIONS if subject != "miscellaneous")
